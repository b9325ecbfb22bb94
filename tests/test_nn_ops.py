"""The operators under what PyTorch does to a program: transform it, fake it, differentiate it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as their
from beside_torch import (
    EVERYTHING,
    FLOOR,
    OPTIONS,
    formula,
    gradients,
    learning,
    noise,
    qkv,
    tensors,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode

import regard
from regard._backends import blockwise
from regard.nn import _ops
from regard.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.once

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class TestOpcheck:
    """torch.library's own list of what an operator has to keep."""

    @pytest.mark.parametrize("learns", [False, True])
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("mask", [None, noise(7, 9) < 0.7, noise(3, 7, 9)])
    def test_forward(self, mask: Tensor | None, dropout: float, learns: bool) -> None:
        q, k, v = learning(*qkv(2, 3)) if learns else qkv(2, 3)
        seed = torch.tensor(5) if dropout else None
        arguments = (q, k, v, mask, None, seed, True, None, dropout, *_ops.UNASKED)
        torch.library.opcheck(_ops.attention, arguments)

    def test_forward_with_a_mask_that_learns(self) -> None:
        arrays = learning(*qkv(2, 3), noise(3, 1, 9))
        torch.library.opcheck(_ops.attention, (*arrays, None, None, False, 0.4, 0.0, *_ops.UNASKED))

    @pytest.mark.parametrize("shape", [(8,), (3, 8)])
    def test_with_the_additive_score(self, shape: tuple[int, ...]) -> None:
        call = (*learning(*qkv(2, 3)), None, *learning(noise(*shape)), None, True, None, 0.0)
        torch.library.opcheck(_ops.attention, (*call, *_ops.UNASKED))
        context, lse, _ = _ops.attention(*call, *_ops.UNASKED)
        given = (torch.ones_like(context), torch.ones_like(lse), context.detach(), lse.detach())
        detached = (x.detach() if isinstance(x, Tensor) else x for x in call)
        torch.library.opcheck(_ops.attention_backward, (*given, *detached, False))

    @pytest.mark.parametrize("dtype", FLOOR)
    def test_forward_with_statistics(self, dtype: torch.dtype) -> None:
        spans = torch.tensor([[0, 2], [1, 7]])
        asked = (spans, spans, True, True, 3, _ops.ALL, [2, 3], True)
        arrays = learning(*qkv(2, 3, dtype=dtype))
        torch.library.opcheck(_ops.attention, (*arrays, None, None, None, False, None, 0.0, *asked))

    @pytest.mark.parametrize("of_mask", [False, True])
    def test_backward(self, of_mask: bool) -> None:
        q, k, v, mask = *qkv(2, 3, d_v=5), noise(3, 1, 9)
        context, lse, _ = _ops.attention(q, k, v, mask, None, None, True, None, 0.0, *_ops.UNASKED)
        given = (torch.ones_like(context), torch.ones_like(lse), context, lse)
        arguments = (*given, q, k, v, mask, None, None, True, None, 0.0, of_mask)
        torch.library.opcheck(_ops.attention_backward, arguments)


class TestVmap:
    """One more batch dimension, wherever it stands; against the formula under the same."""

    @pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, 0, 2), (0, None, None), (None, 1, None)])
    def test_forward(self, in_dims: tuple[int | None, ...]) -> None:
        arrays = [
            x if dim is None else torch.stack([x, x.cos(), x + 1], dim)
            for x, dim in zip(qkv(2, 3), in_dims, strict=True)
        ]
        got = torch.vmap(scaled_dot_product_attention, in_dims)(*arrays)
        want = torch.vmap(formula, in_dims)(*arrays)
        torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("mask", [(7, 9), (3, 1, 9)])
    @pytest.mark.parametrize("dim", [0, 1, None])
    @pytest.mark.parametrize("order", ["gradient of vmap", "vmap of gradient"])
    def test_with_gradients(self, order: str, dim: int | None, mask: tuple[int, ...]) -> None:
        lead = () if dim is None else (4,)
        (bias,) = tensors((*lead, *mask))
        arrays = [*qkv(4, 2, 3), bias.movedim(0, dim) if dim else bias]
        in_dims = (0, 0, 0, dim)

        def found(attend: Callable[..., Tensor]) -> Any:
            if order == "vmap of gradient":
                total = lambda *x: attend(*x).sin().sum()  # noqa: E731
                return torch.vmap(torch.func.grad(total, (0, 1, 2, 3)), in_dims)(*arrays)
            total = lambda *x: torch.vmap(attend, in_dims)(*x).sin().sum()  # noqa: E731
            return torch.func.grad(total, (0, 1, 2, 3))(*arrays)

        got, want = found(scaled_dot_product_attention), found(formula)
        torch.testing.assert_close(got, want)

    def test_of_the_backward_pass_alone(self) -> None:
        arrays = tuple(qkv(2, 3))
        got = torch.func.jacrev(scaled_dot_product_attention, (0, 1, 2))(*arrays)
        want = torch.func.jacrev(formula, (0, 1, 2))(*arrays)
        torch.testing.assert_close(got, want)

    def test_of_gradients_in_a_batch(self) -> None:
        arrays = learning(*qkv(2, 3))
        upstream = noise(4, 2, 3, 7, 8)
        got, want = (
            torch.autograd.grad(attend(*arrays), arrays, upstream, is_grads_batched=True)
            for attend in (scaled_dot_product_attention, formula)
        )
        torch.testing.assert_close(got, want)

    def test_twice(self) -> None:
        arrays = qkv(4, 5, 3)
        got = torch.vmap(torch.vmap(scaled_dot_product_attention))(*arrays)
        torch.testing.assert_close(got, scaled_dot_product_attention(*arrays))

    def test_of_nothing(self) -> None:
        assert torch.vmap(scaled_dot_product_attention)(*qkv(0, 2, 3)).shape == (0, 2, 3, 7, 8)

    def test_of_an_observation(self) -> None:
        def watched(q: Tensor, k: Tensor, v: Tensor) -> Any:
            return scaled_dot_product_attention(q, k, v, observe=EVERYTHING)

        arrays = qkv(4, 2, 3)
        context, seen = torch.vmap(watched)(*arrays)
        same, want = watched(*arrays)
        assert torch.equal(context, same)
        assert isinstance(seen, regard.Observation)
        for name in ("lse", "map", "spans"):
            assert torch.equal(getattr(seen, name), getattr(want, name))
        assert torch.equal(seen.top.keys, want.top.keys)

    def test_of_dropout_needs_to_be_told_how(self) -> None:
        drop = torch.vmap(lambda *x: scaled_dot_product_attention(*x, dropout_p=0.5))
        with pytest.raises(RuntimeError, match="randomness"):
            drop(*qkv(4, 2, 3))

    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_of_dropout(self, randomness: str) -> None:
        def total(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            context = scaled_dot_product_attention(q, k, v, dropout_p=0.5)
            return context.sum(), context

        arrays = [x.expand(4, *x.shape) for x in qkv(2, 3)]
        each = torch.vmap(torch.func.grad(total, 2, has_aux=True), randomness=randomness)
        gradient, context = each(*arrays)
        same = randomness == "same"
        assert torch.equal(context[0], context[1]) is same
        # Linear in the value, so that the sum of the context tells whether both dropped the same.
        torch.testing.assert_close(
            (gradient * arrays[2]).sum((1, 2, 3, 4)), context.sum((1, 2, 3, 4))
        )


class TestDerivatives:
    @pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.7}])
    def test_pass_gradcheck(self, options: dict[str, Any]) -> None:
        def attend(*x: Tensor) -> tuple[Tensor, Tensor]:
            observe = regard.Observe(lse=True)
            context, seen = scaled_dot_product_attention(*x, observe=observe, **options)
            return context, seen.lse

        mask = noise(1, 3, 1, 4, dtype=torch.float64)
        arrays = learning(*qkv(2, 3, L=5, S=4, d_k=3, d_v=2, dtype=torch.float64), mask)
        assert torch.autograd.gradcheck(attend, arrays)

    def test_pass_gradcheck_with_dropout(self) -> None:
        def attend(*x: Tensor) -> Tensor:
            torch.manual_seed(3)
            context: Tensor = scaled_dot_product_attention(*x, dropout_p=0.4)
            return context

        arrays = learning(*qkv(2, 3, L=5, S=4, d_k=3, d_v=2, dtype=torch.float64))
        assert torch.autograd.gradcheck(attend, arrays)

    def test_of_those_that_need_none_are_not_given(self) -> None:
        q, k, v = qkv(2, 3)
        (k,) = learning(k)
        scaled_dot_product_attention(q, k, v).sum().backward()
        assert (q.grad, v.grad) == (None, None)
        assert k.grad is not None

    def test_refuse_a_second_one(self) -> None:
        q, k, v = learning(*qkv(2, 3))
        context = scaled_dot_product_attention(q, k, v)
        (gradient,) = torch.autograd.grad(context.sum(), q, create_graph=True)
        with pytest.raises(regard.BackendError, match="no second derivative"):
            gradient.sum().backward()

    def test_refuse_a_second_one_under_torch_func(self) -> None:
        q, k, v = qkv(2, 3)

        def slope(k: Tensor) -> Tensor:
            first = torch.func.grad(lambda q: scaled_dot_product_attention(q, k, v).sum())
            return first(q).sum()

        with pytest.raises(regard.BackendError, match="no second derivative"):
            torch.func.grad(slope)(k)

    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch.func.jvp
    @pytest.mark.parametrize(
        "attend",
        [
            scaled_dot_product_attention,
            torch.vmap(scaled_dot_product_attention),
            torch.func.grad(lambda *x: scaled_dot_product_attention(*x).sum()),
        ],
        ids=["plain", "under vmap", "of a gradient"],
    )
    def test_refuse_forward_mode(self, attend: Callable[..., Any]) -> None:
        q, k, v = qkv(2, 3)
        with pytest.raises(regard.BackendError, match="no forward-mode derivative"):
            torch.func.jvp(lambda q: attend(q, k, v), (q,), (q,))

    def test_pass_through_a_function_that_is_called_outside_of_vjp(self) -> None:
        arrays = tuple(qkv(2, 3))
        context, pull = torch.func.vjp(scaled_dot_product_attention, *arrays)
        leaves = learning(*arrays)
        want = torch.autograd.grad(scaled_dot_product_attention(*leaves).sum(), leaves)
        torch.testing.assert_close(pull(torch.ones_like(context)), tuple(want))

    def test_survive_checkpointing_with_dropout(self) -> None:
        from torch.utils.checkpoint import checkpoint

        def drop(*x: Tensor) -> Tensor:
            context: Tensor = scaled_dot_product_attention(*x, dropout_p=0.5)
            return context

        arrays = learning(*qkv(2, 3))
        got = gradients(lambda *x: checkpoint(drop, *x, use_reentrant=False), arrays)
        torch.testing.assert_close(got, gradients(drop, arrays), rtol=0, atol=0)


class TestAutocast:
    """As PyTorch's own: all but float64 becomes the lower precision, masks as well."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("given", FLOOR)
    def test_casts(self, given: torch.dtype, dtype: torch.dtype) -> None:
        arrays = qkv(2, 3, dtype=given)
        with torch.autocast("cpu", dtype=dtype):
            got = scaled_dot_product_attention(*arrays)
            expected = their.scaled_dot_product_attention(*arrays).dtype
        assert torch.equal(got, scaled_dot_product_attention(*(x.to(expected) for x in arrays)))

    def test_casts_what_differs_and_a_mask(self) -> None:
        q, k, v = qkv(2, 3)
        mixed = q, k.bfloat16(), v.half(), noise(7, 9)
        with torch.autocast("cpu"):
            got = scaled_dot_product_attention(*mixed)
        assert torch.equal(got, scaled_dot_product_attention(*(x.bfloat16() for x in mixed)))

    def test_passes_on_gradients_in_the_dtype_given(self) -> None:
        def low(*x: Tensor) -> Tensor:
            with torch.autocast("cpu"):
                context: Tensor = scaled_dot_product_attention(*x)
            return context

        found = gradients(low, learning(*qkv(2, 3)))
        assert [x.dtype for x in found] == [torch.bfloat16, *[torch.float32] * 3]

    def test_compiles(self) -> None:
        arrays = learning(*qkv(2, 3))
        compiled = torch.compile(scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu"):
            got, want = compiled(*arrays), scaled_dot_product_attention(*arrays)
        assert torch.equal(got, want)


class TestWithoutNumbers:
    OBSERVED = regard.Observe(lse=True, peak=True, top=2, map=(2, 3), received=2, sink=True)

    @staticmethod
    def shapes(found: tuple[Tensor, regard.Observation]) -> list[Any]:
        context, seen = found
        arrays = [context, seen.lse, *seen.peak, *seen.top, seen.map, seen.received, seen.sink]
        return [(x.shape, x.dtype) for x in arrays]

    @pytest.mark.parametrize("dtype", FLOOR)
    def test_meta_tensors_have_the_shapes(self, dtype: torch.dtype) -> None:
        arrays = qkv(2, 3, d_v=5, dtype=dtype)
        with torch.autocast("cpu", enabled=False):
            got = scaled_dot_product_attention(
                *(x.to("meta") for x in arrays), observe=self.OBSERVED
            )
        assert got[0].device.type == "meta"
        want = scaled_dot_product_attention(*arrays, observe=self.OBSERVED)
        assert self.shapes(got) == self.shapes(want)

    def test_meta_tensors_have_gradients(self) -> None:
        arrays = learning(*(x.to("meta") for x in qkv(2, 3)))
        scaled_dot_product_attention(*arrays).sum().backward()
        assert [x.grad.shape for x in arrays if x.grad is not None] == [x.shape for x in arrays]

    def test_fake_tensors_have_the_shapes(self) -> None:
        with FakeTensorMode():
            got = scaled_dot_product_attention(*qkv(2, 3), dropout_p=0.5, observe=self.OBSERVED)
        want = scaled_dot_product_attention(*qkv(2, 3), observe=self.OBSERVED)
        assert self.shapes(got) == self.shapes(want)


class TestOtherDevices:
    """Have `blockwise`; here it is told to serve the CPU."""

    @pytest.fixture(autouse=True)
    def blockwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_ops, "pick", lambda *_: (blockwise, "for a test"))

    @every_option
    def test_give_the_same(self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        arrays = learning(*qkv(2, 3, dtype=torch.float64))
        got = gradients(scaled_dot_product_attention, arrays, **options)
        monkeypatch.undo()
        want = gradients(scaled_dot_product_attention, arrays, **options)
        torch.testing.assert_close(got, want)

    def test_give_the_same_gradient_of_a_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arrays = learning(*tensors((2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 8), (3, 1, 9)))
        got = gradients(scaled_dot_product_attention, arrays)
        monkeypatch.undo()
        torch.testing.assert_close(got, gradients(scaled_dot_product_attention, arrays))

    def test_find_the_operators(self) -> None:
        for name in ("attention", "attention_backward"):
            for device in ("CUDA", "MPS", "XPU"):
                has = torch._C._dispatch_has_computed_kernel_for_dispatch_key
                assert has(f"regard::{name}", device)
