"""Additive attention in PyTorch: the function, the module, and both while they are watched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import EVERYTHING, learning, noise, qkv
from torch import Tensor, nn

import regard
from regard.nn import AdditiveAttention
from regard.nn.functional import additive_attention

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

MASKS = {"none": None, "boolean": noise(7, 9) < 0.7, "to add": noise(3, 7, 9).double()}
OBSERVED = regard.Observe(lse=True, entropy=True, received="all")


def arrays(*lead: int, heads: int = 3) -> list[Tensor]:
    """Query, key, value, vector in float64, which learn."""
    vector = noise(heads, 8) if heads else noise(8)
    return learning(*(x.double() for x in (*qkv(*lead, heads or 3), vector)))


def formula(
    query: Tensor, key: Tensor, value: Tensor, vector: Tensor, mask: Tensor | None = None
) -> Tensor:
    bent = torch.tanh(query[..., :, None, :] + key[..., None, :, :])
    scores = (bent * vector[..., None, None, :]).sum(-1)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ value


class TestTheFunction:
    @pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
    @pytest.mark.parametrize("heads", [0, 3])
    def test_is_the_formula(self, mask: Tensor | None, heads: int) -> None:
        given = arrays(2, heads=heads)
        found = [
            (context := attend(*given, mask), *torch.autograd.grad(context.sin().sum(), given))
            for attend in (additive_attention, formula)
        ]
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)

    def test_of_one_head(self) -> None:
        *tensors, vector = arrays(1, heads=0)
        query, key, value = (x[0, 0] for x in tensors)
        got = additive_attention(query, key, value, vector)
        torch.testing.assert_close(got, formula(query, key, value, vector))

    def test_passes_gradcheck(self) -> None:
        given = [x[..., :4].detach().requires_grad_() for x in arrays(1)]
        assert torch.autograd.gradcheck(additive_attention, given)

    def test_observes(self) -> None:
        query, key, value, vector = arrays(2)
        context, seen = additive_attention(query, key, value, vector, observe=OBSERVED)
        score = regard.additive(vector)
        _, want = regard.attention(query, key, value, score=score, observe=OBSERVED)
        assert torch.equal(context, additive_attention(query, key, value, vector))
        torch.testing.assert_close(vars(seen), vars(want))

    def test_drops(self) -> None:
        torch.manual_seed(0)
        given = arrays(40)
        kept = additive_attention(*given, dropout_p=0.5)
        assert not torch.equal(kept, additive_attention(*given, dropout_p=0.5))
        torch.testing.assert_close(kept.mean(), formula(*given).mean(), rtol=0, atol=0.05)

    @pytest.mark.parametrize("dim", [0, None])
    def test_under_vmap(self, dim: int | None) -> None:
        query, key, value, vector = (x.detach() for x in arrays(4))
        if dim == 0:
            vector = torch.stack([n * vector for n in range(4)])
        found = []
        for attend in (additive_attention, formula):
            total = lambda *x, f=attend: f(*x).sin().sum()  # noqa: E731
            each = torch.func.grad(total, (0, 1, 2, 3))
            found.append(torch.vmap(each, (0, 0, 0, dim))(query, key, value, vector))
            found.append(torch.vmap(attend, (0, 0, 0, dim))(query, key, value, vector))
        torch.testing.assert_close(found[:2], found[2:])

    def test_compiled(self) -> None:
        torch.compiler.reset()
        compiled = torch.compile(additive_attention, backend="aot_eager", fullgraph=True)
        given = arrays(2)
        found = [
            (context := attend(*given), *torch.autograd.grad(context.sin().sum(), given))
            for attend in (compiled, additive_attention)
        ]
        torch.testing.assert_close(*found, rtol=0, atol=0)
        torch.compiler.reset()

    @pytest.mark.parametrize(
        ("vector", "error", "words"),
        [
            (3.0, regard.DtypeError, "vector: got float; needs a torch tensor"),
            (torch.zeros(8, device="meta"), regard.DtypeError, "vector: is on meta; needs query's"),
            (torch.zeros(8, dtype=int), regard.DtypeError, "vector: got dtype torch.int64"),
            (torch.zeros(3), regard.ShapeError, r"vector: got shape \(3,\); needs \(d,\) = \(8,\)"),
        ],
    )
    def test_refuses(self, vector: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            additive_attention(*arrays(2)[:3], vector)


class Steps(nn.Module):
    """All steps of a decoder at once, over a sequence of 9 and one of 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = AdditiveAttention(4, 6, 5, bias=True)

    def forward(self, query: Tensor, key: Tensor, **options: Any) -> Any:
        mask = torch.arange(9) < torch.tensor([[9], [4]])
        return self.attention(query, key, mask=mask, **options)


def weights_of(module: AdditiveAttention, query: Tensor, key: Tensor) -> Tensor:
    """Bahdanau et al. 2014, from the parameters."""
    q = query @ module.query_projection.weight.mT
    k = key @ module.key_projection.weight.mT
    if module.key_projection.bias is not None:
        k = k + module.key_projection.bias
    scores: Tensor = torch.tanh(q[..., :, None, :] + k[..., None, :, :]) @ module.vector
    return scores


class TestTheModule:
    def inputs(self) -> tuple[Tensor, Tensor]:
        return noise(2, 7, 4).double(), noise(2, 9, 6).double()

    def module(self, **options: Any) -> AdditiveAttention:
        torch.manual_seed(0)
        return AdditiveAttention(4, 6, 5, dtype=torch.float64, **options)

    @pytest.mark.parametrize("bias", [False, True])
    def test_is_the_formula(self, bias: bool) -> None:
        module, (query, key) = self.module(bias=bias), self.inputs()
        want = weights_of(module, query, key).softmax(-1) @ key
        torch.testing.assert_close(module(query, key), want)
        torch.testing.assert_close(module(query[0], key[0]), want[0])

    def test_with_keys_projected_once(self) -> None:
        module, (query, key) = self.module(), self.inputs()
        projected = module.project(key)
        steps = [module(query[:, i : i + 1], projected, key, projected=True) for i in range(7)]
        torch.testing.assert_close(torch.cat(steps, 1), module(query, key))

    @pytest.mark.parametrize("mask", [noise(2, 9) < 0.8, noise(2, 7, 9) < 0.8])
    def test_under_a_mask(self, mask: Tensor) -> None:
        module, (query, key) = self.module(), self.inputs()
        scores = weights_of(module, query, key)
        hidden = ~(mask[:, None] if mask.ndim == 2 else mask)
        want = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ key
        torch.testing.assert_close(module(query, key, mask=mask), want)

    def test_observes_one_head(self) -> None:
        module, (query, key) = self.module(), self.inputs()
        context, seen = module(query, key, observe=EVERYTHING)
        assert torch.equal(context, module(query, key))
        received = weights_of(module, query, key).softmax(-1).sum(-2)
        torch.testing.assert_close(seen.received, received[:, None].detach())

    def test_learns(self) -> None:
        """To read the value beside the key that is the query."""
        torch.manual_seed(0)
        module = AdditiveAttention(8, 8, 32)
        key = nn.functional.one_hot(torch.arange(8), 8).float()
        value = torch.linspace(-1, 1, 8)[:, None]
        optimizer = torch.optim.Adam(module.parameters(), 0.05)
        for _ in range(150):
            loss = (module(key, key, value) - value).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.01

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"projected": True}, regard.OptionError, "projected: needs a value beside the keys"),
            (
                {"mask": torch.ones(2, 9)},
                regard.DtypeError,
                "mask: got dtype torch.float32; needs booleans",
            ),
            (
                {"mask": torch.ones(9, 2, dtype=torch.bool)},
                regard.ShapeError,
                r"mask: got shape \(9, 2\); needs \(\*batch, S\) = \(2, 9\)",
            ),
        ],
    )
    def test_refuses(self, options: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            self.module()(*self.inputs(), **options)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"query": noise(2, 7, 5)}, r"query: got shape \(2, 7, 5\); needs \(..., length, 4\)"),
            ({"query": noise(4)}, r"query: got shape \(4,\); needs \(..., length, 4\)"),
            ({"key": noise(2, 9, 5)}, r"key: got shape \(2, 9, 5\); needs \(..., length, 6\)"),
            (
                {"key": noise(2, 9, 6), "value": noise(2, 9, 6), "projected": True},
                r"key: got shape \(2, 9, 6\); needs \(..., length, 5\)",
            ),
            ({"key": noise(3, 9, 6)}, r"key: got batch \(3,\); needs query's \(2,\)"),
            ({"value": noise(9)}, r"value: got shape \(9,\); needs \(..., length, size\)"),
        ],
    )
    def test_sizes_that_do_not_fit(self, given: dict[str, Any], words: str) -> None:
        module = AdditiveAttention(4, 6, 5)
        with pytest.raises(regard.ShapeError, match=words):
            module(**{"query": noise(2, 7, 4), "key": noise(2, 9, 6)} | given)


class TestWatched:
    def run(self, **options: Any) -> tuple[Steps, Tensor, Tensor, regard.Trace]:
        model, query, key = Steps(), noise(2, 7, 4), noise(2, 9, 6)
        with torch.no_grad():
            expected = model(query, key)
            with regard.watch(model, **options) as trace:
                assert torch.equal(model(query, key), expected)
        return model, query, key, trace

    def test_the_trace_holds_lazy_weights(self) -> None:
        model, query, key, trace = self.run(observe=OBSERVED)
        hidden = torch.arange(9) >= torch.tensor([[9], [4]])
        scores = weights_of(model.attention, query, key)
        want = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1).detach()
        assert trace.names == ("attention",)
        torch.testing.assert_close(trace[0].weights[:, 0, :, :], want)
        torch.testing.assert_close(trace[0].observation.received[:, 0], want.sum(-2))

    def test_weights_do_not_follow_a_vector_that_learns_on(self) -> None:
        model, _, _, trace = self.run()
        before = trace[0].weights[..., :, :]
        with torch.no_grad():
            model.attention.vector.mul_(2)
        assert torch.equal(trace[0].weights[..., :, :], before)

    def test_a_module_that_observes_still_does(self) -> None:
        model, query, key = Steps(), noise(2, 7, 4), noise(2, 9, 6)
        with torch.no_grad(), regard.watch(model) as trace:
            _, seen = model(query, key, observe=OBSERVED)
        torch.testing.assert_close(seen.lse, trace[0].observation.lse)

    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_in_a_file(self, dtype: str | None, tmp_path: Path) -> None:
        *_, trace = self.run(observe=OBSERVED)
        trace.save(tmp_path / "x", dtype=dtype)
        opened = regard.Trace.load(tmp_path / "x")
        near = {"rtol": 0, "atol": 0} if dtype is None else {"rtol": 0.02, "atol": 0.01}
        got, want = (x[0].weights[..., :, :] for x in (opened, trace))
        torch.testing.assert_close(got, want, **near)
