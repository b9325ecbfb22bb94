"""Which backend runs, and why: the choice is never silent."""

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import regard
from regard import _backends, _native
from regard._backends import native

X = np.zeros((1, 2, 4, 8), np.float32)
T = torch.from_numpy(X)


class TestChoice:
    def test_native_comes_first(self) -> None:
        plan = regard.plan(X, X, X)
        assert (plan.backend, plan.isa) == ("native", _native.isa())
        assert "first choice" in plan.reason

    def test_tensors_on_the_cpu_go_there_too(self) -> None:
        assert regard.plan(T, T, T).backend == "native"

    @pytest.mark.parametrize(
        "options",
        [
            {"bias": torch.zeros(4, 4, requires_grad=True)},
            {"bias": regard.alibi(torch.zeros(2, requires_grad=True))},
            {"dropout": 0.1},
        ],
        ids=["a bias that is learned", "slopes that are", "dropout"],
    )
    def test_native_serves(self, options: Any) -> None:
        assert regard.plan(T, T, T, **options).backend == "native"

    def test_what_native_cannot_do_goes_to_blockwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "LONGEST", 3)
        plan = regard.plan(X, X, X)
        assert plan.backend == "blockwise"
        assert (
            plan.reason
            == "native cannot serve: the kernels number keys in 32 bits, and there are 4"
        )

    @pytest.mark.skipif(_native.isa() in native.TILES, reason="tests/test_tiles.py says it there")
    def test_a_lower_precision_changes_nothing_where_it_is_no_faster(self) -> None:
        assert regard.plan(X, X, X, precision="high") == regard.plan(X, X, X)

    def test_without_gradients_wanted_native_serves(self) -> None:
        with torch.no_grad():
            assert regard.plan(T.clone().requires_grad_(), T, T).backend == "native"

    @pytest.mark.parametrize("backend", ["native", "blockwise", "reference"])
    def test_a_backend_can_be_asked_for(self, backend: str) -> None:
        plan = regard.plan(X, X, X, backend=backend)
        assert (plan.backend, plan.reason) == (backend, "asked for by name")

    def test_it_is_the_one_that_attention_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[str] = []
        for name in _backends.NAMES:
            regard.plan(X, X, X, backend=name)  # so that it is loaded
            module = _backends._loaded[name]
            original = module.run
            monkeypatch.setattr(
                module,
                "run",
                lambda p, o, name=name, original=original: (ran.append(name), original(p, o))[1],
            )
        for options in ({}, {"backend": "blockwise"}, {"backend": "reference"}):
            regard.attention(X, X, X, **options)
        assert ran == ["native", "blockwise", "reference"]


def test_nothing_is_computed() -> None:
    huge = np.broadcast_to(np.float32(0), (10**4, 10**4, 10**6, 64))
    assert regard.plan(huge, huge, huge).backend == "native"


def test_it_prints_as_a_sentence() -> None:
    plan = regard.Plan("native", "avx2", "streaming softmax", "the first choice")
    assert str(plan) == "native (avx2, streaming softmax): the first choice"


class TestWithoutTorch:
    """torch is an extra: what needs it says so."""

    @pytest.fixture(autouse=True)
    def no_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = _backends.import_module

        def refused(name: str) -> ModuleType:
            if name.endswith("blockwise"):
                raise ModuleNotFoundError("No module named 'torch'", name="torch")
            return original(name)

        monkeypatch.setattr(_backends, "import_module", refused)
        monkeypatch.setattr(_backends, "_loaded", {})

    def test_native_serves_without(self) -> None:
        assert regard.plan(X, X, X).backend == "native"

    def test_what_native_cannot_do_does_not_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "LONGEST", 3)
        with pytest.raises(
            regard.BackendError, match=r"native cannot serve: .*; blockwise .* torch, which is not"
        ):
            regard.attention(X, X, X)

    def test_blockwise_by_name(self) -> None:
        with pytest.raises(regard.BackendError, match='"blockwise" cannot serve: it needs torch'):
            regard.attention(X, X, X, backend="blockwise")


def test_a_broken_backend_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a missing torch is a reason; a kernel that does not load is an error."""

    def broken(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'regard._native'", name="regard._native")

    monkeypatch.setattr(_backends, "import_module", broken)
    monkeypatch.setattr(_backends, "_loaded", {})
    with pytest.raises(ModuleNotFoundError, match="_native"):
        regard.attention(X, X, X)


def test_an_instruction_set_that_is_not_there_is_one_clear_error() -> None:
    code = "import numpy, regard; x = numpy.zeros((1, 1)); regard.attention(x, x, x)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"REGARD_ISA": "abacus"},
        capture_output=True,
        text=True,
    )
    assert 'OptionError: REGARD_ISA: got "abacus"; this machine runs' in ran.stderr
