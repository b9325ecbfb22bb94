"""Multiplicative attention against its formula."""

from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.nn import MultiplicativeAttention

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

GENERATOR = torch.Generator().manual_seed(4)
QUERY, KEY, VALUE = (torch.randn(2, *n, generator=GENERATOR) for n in ((3, 6), (5, 4), (5, 7)))
REAL = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def by_formula(query: Tensor, key: Tensor, value: Tensor, w: Tensor, shown: Tensor) -> Tensor:
    scores = query.double() @ w.double() @ key.double().mT  # qᵀ W k, without a scale
    return scores.masked_fill(~shown, -torch.inf).softmax(-1) @ value.double()


@pytest.mark.parametrize(
    ("mask", "shown"), [(None, REAL | True), (REAL, REAL), (REAL[:, None].expand(2, 3, 5), REAL)]
)
@pytest.mark.parametrize("projected", [False, True])
def test_general(mask: Any, shown: Tensor, projected: bool) -> None:
    module = MultiplicativeAttention(6, 4)
    key = module.project(KEY) if projected else KEY
    found = module(QUERY, key, VALUE, mask=mask, projected=projected)
    expected = by_formula(QUERY, KEY, VALUE, module.weight, shown[:, None])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_dot_has_no_weights_and_values_are_keys() -> None:
    module = MultiplicativeAttention(4, 4, score="dot")
    query = QUERY[..., :4]
    expected = by_formula(query, KEY, KEY, torch.eye(4), REAL[:, None])
    torch.testing.assert_close(
        module(query, KEY, mask=REAL).double(), expected, rtol=1e-5, atol=1e-6
    )
    assert not list(module.parameters())


def test_batches_broadcast() -> None:
    """Queries that ask all keys, of which a mask is."""
    module, query = MultiplicativeAttention(6, 4), QUERY[:1]
    found = module(query, KEY, mask=REAL)
    torch.testing.assert_close(found, module(query.expand(2, -1, -1), KEY, mask=REAL))


def test_gradients() -> None:
    module = MultiplicativeAttention(6, 4).double()
    assert module.weight is not None
    inputs = [x.double().requires_grad_() for x in (QUERY, KEY, VALUE, module.weight.detach())]

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Any:
        return torch.func.functional_call(module, {"weight": weight}, (query, key, value))

    assert torch.autograd.gradcheck(call, inputs)


def test_observed_as_one_head() -> None:
    context, seen = MultiplicativeAttention(6, 4)(QUERY, KEY, observe=regard.Observe(entropy=True))
    assert context.shape == (2, 3, 4)
    assert seen.entropy.shape == (2, 1, 3)


def test_compiled() -> None:
    module = MultiplicativeAttention(6, 4)
    torch.compiler.reset()
    found = torch.compile(module, backend="eager", fullgraph=True)(QUERY, KEY, mask=REAL)
    torch.testing.assert_close(found, module(QUERY, KEY, mask=REAL))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m(QUERY, m.project(KEY), projected=True),
            regard.OptionError,
            "projected: needs a value beside the keys, got None",
        ),
        (lambda m: m(KEY, KEY), regard.ShapeError, r"query: got shape \(2, 5, 4\)"),
        (lambda m: m(QUERY, VALUE), regard.ShapeError, r"key: got shape \(2, 5, 7\)"),
        (lambda m: m(QUERY, QUERY, KEY, projected=True), regard.ShapeError, "value: got S = 5"),
        (
            lambda m: m(QUERY, KEY, KEY, projected=True),
            regard.ShapeError,
            r"key: got shape \(2, 5, 4\); needs \(..., length, 6\)",
        ),
        (
            lambda m: m(QUERY, KEY, mask=REAL[:, :3]),
            regard.ShapeError,
            r"mask: got shape \(2, 3\); needs \(\*batch, S\) = \(2, 5\) or",
        ),
        (
            lambda m: m(QUERY, KEY, mask=REAL.int()),
            regard.DtypeError,
            "mask: got dtype torch.int32",
        ),
        (
            lambda m: MultiplicativeAttention(6, 4, score="concat"),
            regard.OptionError,
            "score: got 'concat'; needs one of general, dot",
        ),
        (
            lambda m: MultiplicativeAttention(6, 4, score="dot"),
            regard.ShapeError,
            'key_size: got 4; "dot" needs query_size, 6',
        ),
    ],
)
def test_what_does_not_fit(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(MultiplicativeAttention(6, 4))
