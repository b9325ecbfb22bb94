"""Blockwise beyond what every backend holds: gradients, dropout, memory, devices' contexts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import regard
from regard._backends import blockwise

pytestmark = pytest.mark.once

LSE = regard.Observe(lse=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks even in small problems."""
    monkeypatch.setattr(blockwise, "BLOCK", 200)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def attend(*arrays: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    context, seen = regard.attention(*arrays, observe=LSE, backend="blockwise", **options)
    return context, seen.lse


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    visible: torch.Tensor,
    bias: torch.Tensor,
    softcap: float,
    sinks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Context and lse as anyone would write them; L x S is stored and autograd does the rest."""
    group = query.shape[-3] // key.shape[-3]
    key, value = (x.repeat_interleave(group, dim=-3) for x in (key, value))
    score = query @ key.mT / query.shape[-1] ** 0.5
    score = (softcap * torch.tanh(score / softcap) + bias).masked_fill(~visible, -torch.inf)
    column = sinks[:, None, None].expand(*score.shape[:-1], 1)
    score = torch.cat([score, column], dim=-1)
    return score.softmax(dim=-1)[..., :-1] @ value, score.logsumexp(dim=-1)


class TestGradients:
    def check(
        self, bias: torch.Tensor, wrapped: Any, expanded: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Every gradient, through context and lse, against autograd of the plain formula."""
        query, key, value = normal(2, 4, 9, 5), normal(2, 2, 11, 5), normal(2, 2, 11, 3)
        sinks = normal(4)
        inputs = (query, key, value, sinks, bias)
        visible = torch.ones(9, 11, dtype=torch.bool).tril(2)
        options = {"softcap": 2.0, "sinks": sinks}
        ours = attend(query, key, value, mask=regard.causal("end"), bias=wrapped, **options)
        theirs = plain(query, key, value, visible=visible, bias=expanded(bias), **options)
        towards = [torch.randn_like(x) for x in theirs]
        got = torch.autograd.grad(ours, inputs, towards)
        want = torch.autograd.grad(theirs, inputs, towards)
        for x, y in zip([*ours, *got], [*theirs, *want], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize(
        "shape", [(2, 4, 9, 11), (9, 11), (4, 1, 11), (2, 1, 9, 1), (11,), (1, 1, 1, 1), ()]
    )
    def test_with_a_dense_bias(self, shape: tuple[int, ...]) -> None:
        bias = normal(*shape)
        self.check(bias, bias, lambda b: b)

    def test_with_alibi(self) -> None:
        slopes = normal(4)
        distance = torch.arange(11)[None] - torch.arange(9)[:, None]
        self.check(
            slopes, regard.alibi(slopes), lambda s: -s[:, None, None] * distance.abs().double()
        )

    def test_with_a_relative_bias(self) -> None:
        table = normal(8, 4)
        bias = regard.relative(table, max_distance=9)
        distance = np.arange(11)[None] - np.arange(9)[:, None]
        buckets = torch.from_numpy(bias.bucket(distance))
        self.check(table, bias, lambda t: t[buckets].permute(2, 0, 1))

    def test_of_a_shared_batch_are_summed(self) -> None:
        query, key = normal(3, 2, 4, 5), normal(2, 6, 5)
        context, _ = attend(query, key, key)
        (got,) = torch.autograd.grad(context.sum(), key)
        total = sum(
            torch.autograd.grad(attend(query[n], key, key)[0].sum(), key)[0] for n in range(3)
        )
        torch.testing.assert_close(got, total)

    @pytest.mark.parametrize("wanted", range(5))
    def test_of_one_input_alone(self, wanted: int) -> None:
        arrays = [normal(2, 4, 5).detach() for _ in range(3)]
        sinks, bias = normal(2).detach(), normal(4, 4).detach()
        inputs = [*arrays, sinks, bias]
        inputs[wanted].requires_grad_()
        context, lse = attend(*arrays, sinks=sinks, bias=bias)
        (context.sum() + lse.sum()).backward()
        assert [x.grad is not None for x in inputs] == [n == wanted for n in range(5)]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_have_the_dtype_of_their_input(self, dtype: torch.dtype) -> None:
        inputs = [normal(1, 2, 6, 8, seed=n).detach().to(dtype).requires_grad_() for n in range(3)]
        context, lse = attend(*inputs)
        (context.float().sum() + lse.sum()).backward()
        exact = [x.detach().double().requires_grad_() for x in inputs]
        context, lse = attend(*exact)
        (context.sum() + lse.sum()).backward()
        near = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        for x, y in zip(inputs, exact, strict=True):
            assert x.grad is not None
            assert x.grad.dtype == dtype
            torch.testing.assert_close(x.grad.double(), y.grad, rtol=near, atol=near)

    def test_agree_with_finite_differences(self) -> None:
        inputs = (normal(2, 3, 4), normal(1, 5, 4), normal(1, 5, 2), normal(2), normal(3, 5))

        def both(q: Any, k: Any, v: Any, s: Any, b: Any) -> Any:
            return attend(q, k, v, sinks=s, bias=b, softcap=1.5, mask=regard.causal(1))

        assert torch.autograd.gradcheck(both, inputs)

    def test_only_through_context_and_lse(self) -> None:
        x = normal(1, 3, 4)
        everything = regard.Observe(entropy=True, peak=True, top=2, received="all", map=(1, 1))
        _, seen = regard.attention(x, x, x, observe=everything, backend="blockwise")
        seen.each(lambda s: pytest.fail("carries a gradient") if s.requires_grad else s)

    def test_of_weights_without_a_value(self) -> None:
        """The log-sum-exp of a problem without a value is differentiable too."""
        from regard._problem import make_problem

        query, key = normal(1, 3, 4), normal(1, 5, 4)
        context, seen = blockwise.run(make_problem(query, key, None), LSE)
        assert context is None
        (got,) = torch.autograd.grad(seen.lse.sum(), query)
        score = query @ key.mT / 2
        (want,) = torch.autograd.grad(score.logsumexp(dim=-1).sum(), query)
        torch.testing.assert_close(got, want)


class TestSecondDerivative:
    def test_is_refused(self) -> None:
        x = normal(1, 3, 4)
        (gradient,) = torch.autograd.grad(attend(x, x, x)[0].sum(), x, create_graph=True)
        with pytest.raises(regard.BackendError, match="attention has no second derivative"):
            gradient.sum().backward()

    def test_a_first_with_its_graph_kept_is_not(self) -> None:
        x = normal(1, 3, 4)
        context, _ = attend(x, x, x)
        (kept,) = torch.autograd.grad(context.sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(context.sum(), x)
        torch.testing.assert_close(kept, again)


def test_a_tensor_changed_between_forward_and_backward_is_noticed() -> None:
    x, key = normal(1, 3, 4), normal(1, 3, 4).detach()
    context, _ = attend(x, key, key)
    key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        context.sum().backward()


class TestMaskedGarbage:
    @pytest.mark.parametrize("garbage", [np.nan, np.inf])
    def test_reaches_no_gradient(self, garbage: float) -> None:
        inputs = [normal(1, 8, 4, seed=n) for n in range(3)]
        dirty = [x.detach().clone() for x in inputs]
        for x in dirty:  # a padded query sees nothing, a padded key is seen by nobody
            x[:, 5:] = garbage
            x.requires_grad_()
        real = np.arange(8) < 5
        mask = regard.padding(real, queries=real)
        for arrays in (inputs, dirty):
            context, _ = attend(*arrays, mask=mask, softcap=3.0)
            context.sum().backward()
        for x, y in zip(inputs, dirty, strict=True):
            torch.testing.assert_close(x.grad, y.grad)
            assert (y.grad[:, 5:] == 0).all()

    def test_of_one_row_reaches_no_key_that_the_row_does_not_see(self) -> None:
        query, key, value = (normal(1, 8, 4, seed=n).detach() for n in range(3))
        query[:, 3] = np.nan
        key.requires_grad_()
        value.requires_grad_()
        context, _ = attend(query, key, value, mask=regard.causal())
        context.sum().backward()
        for x in (key, value):
            assert x.grad[:, :4].isnan().all()
            assert x.grad[:, 4:].isfinite().all()


class TestDropout:
    def attend(self, seed: int, p: float = 0.5) -> torch.Tensor:
        x = normal(2, 30, 8).detach()
        torch.manual_seed(seed)
        context: torch.Tensor = regard.attention(x, x, x, dropout=p, backend="blockwise")
        return context

    def test_follows_torchs_seed(self) -> None:
        assert torch.equal(self.attend(1), self.attend(1))
        assert not torch.equal(self.attend(1), self.attend(2))

    def test_is_the_same_forward_and_backward(self) -> None:
        inputs = tuple(normal(2, 3, 4, seed=n) for n in range(3))

        def dropped(*arrays: torch.Tensor) -> Any:
            torch.manual_seed(3)
            return regard.attention(*arrays, dropout=0.4, backend="blockwise")

        assert torch.autograd.gradcheck(dropped, inputs)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize(
    "bias", [None, "row", "alibi", "relative"], ids=["plain", "row", "alibi", "relative"]
)
def test_the_matrix_is_never_stored(bias: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward, nor for the gradient of a bias smaller than the matrix."""
    block, L = 2**13, 400
    monkeypatch.setattr(blockwise, "BLOCK", block)
    query, key, value = (normal(2, L, 8, seed=n, dtype=torch.float32) for n in range(3))
    made = {
        None: None,
        "row": normal(1, L),
        "alibi": regard.alibi(normal(2)),
        "relative": regard.relative(normal(32, 2)),
    }[bias]
    everything = regard.Observe(
        lse=True, entropy=True, peak=True, top=4, received="all", map=(8, 8), sink=True
    )
    with Largest() as largest:
        context, seen = regard.attention(
            query,
            key,
            value,
            mask=regard.causal(),
            bias=made,
            observe=everything,
            backend="blockwise",
        )
        (context.sum() + seen.lse.sum()).backward()
    assert largest.elements <= 2 * block  # an index of 64 bits counts like two numbers of 32
    assert 2 * block < L * L


def test_autocast_does_not_lower_the_precision() -> None:
    inputs = [normal(2, 20, 8, seed=n, dtype=torch.float32) for n in range(3)]
    want = torch.autograd.grad(attend(*inputs)[0].sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(attend(*inputs)[0].sum(), inputs)
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


def test_a_row_does_not_depend_on_the_block_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = normal(4, 50, 16).detach(), normal(4, 70, 16).detach()
    everything = regard.Observe(lse=True, entropy=True, peak=True, top=3, received=20, map=(7, 9))
    found: list[list[torch.Tensor]] = []
    for block in (1, 1000, 2**20):
        monkeypatch.setattr(blockwise, "BLOCK", block)
        _, seen = regard.attention(query, key, key, observe=everything, backend="blockwise")
        found.append([])
        seen.each(found[-1].append)
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            torch.testing.assert_close(x, y)
