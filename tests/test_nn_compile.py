"""The operators compiled: torch.compile and torch.export see one call, and no graph breaks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from beside_torch import EVERYTHING, OPTIONS, gradients, learning, noise, qkv, tensors
from torch import Tensor

import regard
from regard.nn import _ops
from regard.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.once
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class TestCompiled:
    """In one piece: fullgraph=True raises where the graph would break."""

    @every_option
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_forward_and_backward(self, options: dict[str, Any], dynamic: bool) -> None:
        compiled = torch.compile(
            scaled_dot_product_attention, backend="aot_eager", fullgraph=True, dynamic=dynamic
        )
        arrays = learning(*qkv(2, 3))
        got = gradients(compiled, arrays, **options)
        want = gradients(scaled_dot_product_attention, arrays, **options)
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    @every_option
    def test_without_gradients(self, options: dict[str, Any]) -> None:
        compiled = torch.compile(scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
        found = []
        for attend in (compiled, scaled_dot_product_attention):
            torch.manual_seed(0)
            found.append(attend(*qkv(2, 3), **options))
        assert torch.equal(*found)

    def test_gradient_of_a_mask(self) -> None:
        compiled = torch.compile(scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
        arrays = learning(*qkv(2, 3), noise(3, 1, 9))
        got = gradients(compiled, arrays)
        want = gradients(scaled_dot_product_attention, arrays)
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_with_shapes_that_differ_and_broadcast(self) -> None:
        compiled = torch.compile(
            scaled_dot_product_attention, backend="aot_eager", fullgraph=True, dynamic=True
        )
        for L in (4, 7, 12):
            arrays = tensors((2, 6, L, 8), (1, 2, L + 3, 8), (1, 3, L + 3, 5))
            got = compiled(*arrays, enable_gqa=True)
            assert torch.equal(got, scaled_dot_product_attention(*arrays, enable_gqa=True))

    def test_gives_an_observation_as_a_tuple_in_the_order_of_its_fields(self) -> None:
        def watched(q: Tensor, k: Tensor, v: Tensor) -> Any:
            return scaled_dot_product_attention(q, k, v, observe=EVERYTHING)

        arrays = learning(*qkv(2, 3))
        _, seen = watched(*arrays)
        want = [seen.lse, seen.entropy, *seen.peak, *seen.top, seen.received, seen.map, seen.spans]
        _, got = torch.compile(watched, backend="aot_eager", fullgraph=True)(*arrays)
        assert type(got) is tuple
        torch.testing.assert_close(list(got), want, rtol=0, atol=0)
        assert [x.requires_grad for x in got] == [True] + [False] * 8

    def test_lse_passes_on_gradients(self) -> None:
        def lse(q: Tensor, k: Tensor, v: Tensor) -> Any:
            _, seen = scaled_dot_product_attention(q, k, v, observe=regard.Observe(lse=True))
            return seen[0] if torch.compiler.is_compiling() else seen.lse

        arrays = learning(*qkv(2, 3))[:2]
        value = qkv(2, 3)[2]
        compiled = torch.compile(lse, backend="aot_eager", fullgraph=True)
        got = gradients(lambda q, k: compiled(q, k, value), arrays)
        want = gradients(lambda q, k: lse(q, k, value), arrays)
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_draws_new_dropout_at_every_call(self) -> None:
        compiled = torch.compile(scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
        first, second = (compiled(*qkv(2, 3), dropout_p=0.5) for _ in range(2))
        assert not torch.equal(first, second)

    def test_exports(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                context: Tensor = scaled_dot_product_attention(q, k, v, is_causal=True)
                return context

        arrays = tuple(qkv(2, 3))
        exported = torch.export.export(Model(), arrays)
        targets = [node.target for node in exported.graph.nodes]
        assert _ops.attention in targets
        assert torch.equal(exported.module()(*arrays), Model()(*arrays))

    @pytest.mark.deep
    @pytest.mark.filterwarnings("ignore")  # Inductor's, of its own making
    @pytest.mark.parametrize("name", ["plain", "mask to add"])
    def test_by_inductor(self, name: str) -> None:
        if not torch._inductor.cpp_builder.get_cpp_compiler():
            pytest.skip("Inductor needs a C++ compiler")

        def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            context: Tensor = scaled_dot_product_attention(q * 2, k + 1, v, **OPTIONS[name])
            return context.relu()

        arrays = learning(*qkv(2, 3))
        got = gradients(torch.compile(block, fullgraph=True), arrays)
        torch.testing.assert_close(got, gradients(block, arrays))

    @pytest.mark.deep
    @pytest.mark.filterwarnings("ignore")
    def test_by_inductor_drops_the_same_forward_and_backward(self) -> None:
        """Linear in the value, so context · upstream = value · gradient."""
        q, k, v = qkv(2, 3)
        (v,) = learning(v)
        compiled = torch.compile(
            lambda v: scaled_dot_product_attention(q, k, v, dropout_p=0.5), fullgraph=True
        )
        context = compiled(v)
        upstream = noise(*context.shape)
        (gradient,) = torch.autograd.grad(context, v, upstream)
        torch.testing.assert_close((context * upstream).sum(), (v * gradient).sum())
