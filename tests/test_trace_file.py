"""Traces saved and opened: every number as it was, and a file that is whole or not there."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import biases, masks
from tiny_models import FAMILIES, inputs, tiny, watched

import regard
from regard._bias import DistanceBias
from regard._masks import Both, Dense, Mask, Padding
from regard._observation import Observation, Observe
from regard._problem import make_problem
from regard._watch import Layer, files
from regard._watch.trace_file import VERSION
from regard._weights import Weights

pytestmark = pytest.mark.once

OLD = Path(__file__).parent / "data" / "trace_version_1.safetensors"
EVERYTHING = Observe(
    entropy=True,
    peak=True,
    top=3,
    received="all",
    map=(4, 5),
    spans=([(0, 3), (5, 5)], None),
    sink=True,
)


def reopened(trace: regard.Trace, folder: Path, **options: Any) -> regard.Trace:
    trace.save(folder / "run.trace", **options)
    return regard.Trace.load(folder / "run.trace")


def arrays(seen: Observation) -> dict[str, torch.Tensor]:
    found: dict[str, Any] = {}
    for name, value in vars(seen).items():
        for part, x in enumerate(value if isinstance(value, tuple) else [value]):
            if x is not None:
                found[f"{name} {part}"] = torch.as_tensor(x)
    return found


def check_same(layer: Layer, opened: Layer) -> None:
    for name in ("number", "name", "heads", "queries", "keys", "sequence", "cross"):
        assert getattr(layer, name) == getattr(opened, name), name
    before, after = arrays(layer.observation), arrays(opened.observation)
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert x.dtype == after[name].dtype
        assert torch.equal(x.nan_to_num(1e9), after[name].nan_to_num(1e9)), name
    if layer.kept is not None:
        assert torch.equal(layer.weights[..., :, :], opened.weights[..., :, :])


def built(mask: Any = None, bias: Any = None, heads: int = 2, L: int = 5, S: int = 7) -> Layer:
    """A layer of random numbers."""
    rng = np.random.default_rng(3)
    query, key = (
        torch.from_numpy(rng.normal(size=(2, heads, n, 4)).astype(np.float32)) for n in (L, S)
    )
    weights = Weights(make_problem(query, key, None, mask=mask, bias=bias))
    seen = Observation(lse=torch.as_tensor(weights.lse()))
    return Layer(0, "it", tuple(range(heads)), range(L), range(S), "input", False, seen, weights)


def trace_of(*layers: Layer) -> regard.Trace:
    trace = regard.Trace()
    for layer in layers:
        trace.add(layer)
    return trace


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_opened_trace_is_the_one_that_was_saved(
    family: str, padding: str, tmp_path: Path
) -> None:
    trace, _ = watched(tiny(family), observe=EVERYTHING, **inputs(30, padding))
    opened = reopened(trace, tmp_path)
    assert (opened.names, opened.numbers) == (trace.names, trace.numbers)
    assert (opened.start, opened.model, opened.options) == (0, trace.model, trace.options)
    assert torch.equal(opened.token_ids, trace.token_ids)
    assert torch.equal(opened.attention_mask, trace.attention_mask)
    assert opened.passes == trace.passes == {"input": [30]}
    for layer, other in zip(trace, opened, strict=True):
        check_same(layer, other)


def test_a_generation_in_files_again_and_again(tmp_path: Path) -> None:
    model = tiny("mistral")
    with regard.watch(model, observe=EVERYTHING, heads=[1, 2], dtype="bfloat16") as trace:
        model.generate(**inputs(20, "left"), max_new_tokens=6, do_sample=False)
    opened = reopened(reopened(trace, tmp_path), tmp_path)
    for layer, other in zip(trace, opened, strict=True):
        check_same(layer, other)
    assert opened.passes == trace.passes
    assert opened.options["heads"] == [1, 2]
    assert opened.options["dtype"] == "bfloat16"
    assert opened.options["observe"]["spans"] == [[[0, 3], [5, 5]], None]


def test_statistics_alone(tmp_path: Path) -> None:
    model = tiny("llama")
    with regard.watch(model, observe=Observe(entropy=True), keep="statistics") as trace:
        model(**inputs(12))
    opened = reopened(trace, tmp_path)
    check_same(trace[1], opened[1])
    with pytest.raises(regard.ModelError, match="kept statistics only"):
        opened[1].weights  # noqa: B018


def test_words_are_those_of_the_tokenizer(minilm: Any, tmp_path: Path) -> None:
    model, tokenizer = minilm
    given = tokenizer(["A naïve trophy didn't fit.", "Yes."], padding=True, return_tensors="pt")
    trace, _ = watched(model, tokenizer=tokenizer, **given)
    opened = reopened(reopened(trace, tmp_path), tmp_path)
    for entry in (0, 1, -1):
        assert opened.tokens(entry) == trace.tokens(entry)
        assert opened.words(entry) == trace.words(entry)
        assert opened.sentences(entry) == trace.sentences(entry)
        assert opened.positions(entry).padding.tolist() == trace.positions(entry).padding.tolist()
    with pytest.raises(regard.TextError, match="tokenizer: none was given"):
        opened.words(0, "Yes.")
    again = regard.Trace.load(tmp_path / "run.trace", tokenizer=tokenizer)
    assert again.words(1, "Yes.") == trace.words(1, "Yes.")
    with pytest.raises(regard.OptionError, match="entry: got 2"):
        opened.words(2)


def test_without_a_tokenizer_there_are_ids_alone(tmp_path: Path) -> None:
    trace, _ = watched(tiny("llama"), **inputs(8))
    with pytest.raises(regard.TextError, match="tokenizer: none was given"):
        reopened(trace, tmp_path).tokens()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float16])
def test_rounded_weights_sum_to_one(dtype: Any, tmp_path: Path) -> None:
    trace, _ = watched(tiny("gemma2"), observe=EVERYTHING, **inputs(30))
    name = str(dtype).removeprefix("torch.")
    opened = reopened(trace, tmp_path, dtype=dtype)
    assert opened.options["dtype"] == name
    for layer, other in zip(trace, opened, strict=True):
        assert other.weights.problem.dtype == name
        assert torch.equal(layer.observation.entropy, other.observation.entropy)  # type: ignore
        weights = other.weights[..., :, :]
        assert float((weights.sum(-1) - 1).abs().max()) < 3e-6
        assert float((weights - layer.weights[..., :, :]).abs().max()) < 0.1


def test_widening_changes_nothing(tmp_path: Path) -> None:
    model = tiny("llama")
    with regard.watch(model, dtype="float16") as trace:
        model(**inputs(20))
    opened = reopened(trace, tmp_path, dtype="float32")
    assert opened[0].weights.problem.dtype == "float32"
    same = opened[0].weights[..., :, :], trace[0].weights[..., :, :]
    torch.testing.assert_close(*same, rtol=1e-6, atol=1e-9)


def test_numbers_that_a_dtype_cannot_hold(tmp_path: Path) -> None:
    layer = built()
    layer.weights.problem.key[0, 0, 0, 0] = 1e5
    trace = trace_of(layer)
    with pytest.raises(regard.OptionError, match=r"float16 ends at 6.55e\+04, and it holds 1e\+05"):
        trace.save(tmp_path / "x", dtype="float16")
    assert list(tmp_path.iterdir()) == []
    trace.save(tmp_path / "x", dtype="bfloat16")
    with pytest.raises(regard.OptionError, match="dtype: got 'int8'; needs one of float32"):
        trace.save(tmp_path / "x", dtype="int8")


def test_the_lse_of_rounded_numbers_is_computed_when_asked_for(tmp_path: Path) -> None:
    layer = built()
    assert reopened(trace_of(layer), tmp_path)[0].weights.known_lse is not None
    weights = reopened(trace_of(layer), tmp_path, dtype="bfloat16")[0].weights
    assert weights.known_lse is None
    assert float(weights[..., 2, :].sum(-1).sub(1).abs().max()) < 3e-6
    assert weights.known_lse is None  # of one row it is known now
    weights.lse()
    assert weights.known_lse is not None


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@given(st.data())
def test_masks_and_biases_stay_descriptions(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    batch, heads, L, S = data.draw(SIZES)
    full = (batch, heads, L, S)
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(batch, heads, n, 4)).astype(np.float32) for n in (L, S))
    mask, bias = data.draw(st.one_of(st.none(), masks(full))), data.draw(biases(full))
    options: Any = {
        "scale": data.draw(st.floats(-2, 2)),
        "softcap": data.draw(st.sampled_from([None, 3.5])),
        "sinks": data.draw(st.sampled_from([None, torch.randn(heads)])),
    }
    tensors = torch.from_numpy(query), torch.from_numpy(key)
    weights = Weights(make_problem(*tensors, None, mask=mask, bias=bias, **options))
    seen = Observation(lse=torch.as_tensor(weights.lse()))
    held = tuple(range(heads))
    layer = Layer(4, "a.b", held, range(3, 3 + L), range(S), "other", True, seen, weights)
    opened = reopened(trace_of(layer), tmp_path_factory.mktemp("masks"))[4]
    check_same(layer, opened)
    assert shape_of(opened.weights.problem.mask) == shape_of(weights.problem.mask)
    kinds = {type(x.problem.bias) for x in (weights, opened.weights)}
    assert len(kinds) == 1
    assert (opened.weights.problem.scale, opened.weights.problem.softcap) == (
        weights.problem.scale,
        weights.problem.softcap,
    )
    if isinstance(bias, DistanceBias):
        assert torch.equal(opened.weights.received(), weights.received())


def shape_of(mask: Mask | None) -> Any:
    """The kinds of a tree of masks."""
    parts = [x for x in vars(mask).values() if isinstance(x, Mask)] if mask else []
    return [type(mask).__name__, *map(shape_of, parts)]


def test_what_layers_share_is_kept_once(tmp_path: Path) -> None:
    seen = np.random.default_rng(0).random((600, 600)) < 0.5
    layers = [built(seen.copy(), L=600, S=600) for _ in range(6)]
    trace = regard.Trace()
    for number, layer in enumerate(layers):
        trace.add(Layer(**{**vars(layer), "number": number, "name": f"layer {number}"}))
    opened = reopened(trace, tmp_path)
    assert (
        os.path.getsize(tmp_path / "run.trace") < 6 * 2 * 2 * 600 * (4 * 4 * 2 + 8) + 600 * 600 / 7
    )
    first, last = (opened[n].weights.problem.mask for n in (0, 5))
    assert isinstance(first, Dense)
    assert isinstance(last, Dense)
    assert first.array.data_ptr() == last.array.data_ptr()
    assert first.array.stride()[:2] == (0, 0)
    check_same(trace[3], opened[3])


def test_a_mask_too_deep_to_be_read_is_not_written(tmp_path: Path) -> None:
    mask = regard.causal()
    for _ in range(70):
        mask = mask & regard.window(3)
    with pytest.raises(regard.FileError, match="x: mask: is composed of more than 64 levels"):
        trace_of(built(mask)).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_tensors_are_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trace, _ = watched(tiny("llama"), **inputs(9, "left"))
    trace.save(tmp_path / "x")
    found = load_file(tmp_path / "x")
    assert torch.equal(found["layers.1.key"], trace[1].weights.problem.key)
    assert torch.equal(found["token_ids"], trace.token_ids)


def test_opening_reads_next_to_nothing(tmp_path: Path) -> None:
    """The keys of 64 MB come to memory when they are looked at."""
    query, key = torch.zeros(1, 1, 8, 64), torch.randn(1, 1, 2**18, 64)
    weights = Weights(make_problem(query, key, None))
    seen = Observation(lse=torch.as_tensor(weights.lse()))
    layer = Layer(0, "x", (0,), range(8), range(2**18), "other", False, seen, weights)
    trace_of(layer).save(tmp_path / "x")
    code = (
        "import sys, regard, torch; from regard._watch import trace_file\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "before = rss(); trace = regard.Trace.load(sys.argv[1]); trace[0].weights[..., 3, :9]\n"
        "print(rss() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16e6


class TestWriting:
    def trace(self) -> regard.Trace:
        return trace_of(built(regard.causal("end")))

    def test_an_open_trace_can_replace_its_own_file(self, tmp_path: Path) -> None:
        trace, _ = watched(tiny("bert"), **inputs(30, "right"))
        trace.save(tmp_path / "x")
        opened = regard.Trace.load(tmp_path / "x")
        opened.save(tmp_path / "x", dtype="bfloat16")
        self.trace().save(tmp_path / "x")
        for layer, other in zip(trace, opened, strict=True):
            check_same(layer, other)
        assert regard.Trace.load(tmp_path / "x").names == ("it",)
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_an_empty_trace(self, tmp_path: Path) -> None:
        with pytest.raises(regard.ModelError, match="trace: is empty; call the model"):
            regard.Trace().save(tmp_path / "x")

    @pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
    def test_a_full_disk_leaves_the_old_file(
        self, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        path = tmp_path / "x"
        path.write_bytes(b"old")
        if broken == "write":
            monkeypatch.setattr("regard._watch.trace_tensors.Contents.write", full)
        elif broken == "fsync":
            monkeypatch.setattr(files.os, "fsync", full)
        else:
            monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(
            regard.FileError, match=r"x: cannot be written \(No space left on device\); nothing"
        ) as caught:
            self.trace().save(path)
        assert isinstance(caught.value, OSError)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_a_disk_that_really_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"old")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(regard.FileError, match=r"cannot be written \(File too large\)"):
                self.trace().save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_an_interrupt_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("regard._watch.trace_tensors.Contents.write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            self.trace().save(tmp_path / "x")
        assert list(tmp_path.iterdir()) == []

    def test_places_where_no_file_can_be(self, tmp_path: Path) -> None:
        with pytest.raises(regard.FileError, match=r"cannot be written \(No such file"):
            self.trace().save(tmp_path / "missing" / "x")
        with pytest.raises(regard.FileError, match="cannot be written, it is no file"):
            self.trace().save(tmp_path)
        with pytest.raises(regard.FileError, match="/dev/full: cannot be written, it is no file"):
            self.trace().save("/dev/full")

    def test_a_link_goes_on_pointing_to_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "x")
        self.trace().save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert regard.Trace.load(tmp_path / "x").names == ("it",)

    def test_others_may_read_it_as_the_umask_says(self, tmp_path: Path) -> None:
        self.trace().save(tmp_path / "x")
        (tmp_path / "y").touch()
        assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def version_1() -> regard.Trace:
    """The trace in the kept file."""
    mask = regard.causal("end") & regard.padding(torch.tensor([[True] * 7, [False] + [True] * 6]))
    bias = regard.alibi(torch.tensor([0.5, 0.25]))
    trace = trace_of(built(mask, bias))
    trace.token_ids, trace.start = torch.arange(14).reshape(2, 7), 3
    trace.passes = {"input": [7]}
    return trace


def test_a_file_of_version_1_is_read() -> None:
    opened, trace = regard.Trace.load(OLD), version_1()
    assert VERSION >= 2
    check_same(trace[0], opened[0])
    assert torch.equal(opened.token_ids, trace.token_ids)
    assert (opened.start, opened.whole) == (3, None)
    assert opened.passes == {"input": [7]}
    assert isinstance(opened[0].weights.problem.mask, Both)
    assert isinstance(opened[0].weights.problem.mask.b, Padding)
    # Numbers of the day on which it was written, which no later code computes.
    numbers = [0.02186201885342598, 0.22912058234214783, 0.023341339081525803]
    assert opened[0].weights[1, 1, 4, 1:4].tolist() == pytest.approx(numbers, rel=1e-6)
