"""What a cache adds to `MultiHeadAttention`: masks that count on, and calls that are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.nn import KeyValueCache, MultiHeadAttention, Transformer

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(5))
REAL = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
MASKS: dict[str, Any] = {
    "causal": regard.causal(),
    "window": regard.window(2, 0),
    "both": regard.causal() & regard.window(1),
    "either": regard.window(0, 0) | regard.prefix(2),
    "one offset each": regard.window(2, 0, offset=torch.tensor([0, -1])),
    "end": regard.causal("end") & regard.window(2, 0, "end"),
}


@pytest.mark.parametrize("cuts", [(1,) * 6, (3, 1, 2)])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_that_move_with_the_diagonal_count_on(mask: Any, cuts: tuple[int, ...]) -> None:
    module, cache = MultiHeadAttention(16, 4), KeyValueCache()
    # As the keys of the future are not there yet, `causal` hides them from the whole.
    whole = module(X, mask=mask & regard.causal())
    steps = [module(x, mask=mask, causal=True, cache=cache) for x in X.split(cuts, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_padding_of_all_keys_step_by_step() -> None:
    module, cache = MultiHeadAttention(16, 4), KeyValueCache()
    whole = module(X, causal=True, padding=REAL)
    steps = [
        module(X[:, n : n + 1], causal=True, padding=REAL[:, : n + 1], cache=cache)
        for n in range(6)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole)


ONES = torch.ones(2, 1, dtype=torch.bool)


@pytest.mark.parametrize("options", [{}, {"alibi": True}])
@pytest.mark.parametrize("shape", [(2, 1), (6,), (1, 6), (2, 5), (2, 1, 6)])
def test_padding_does_not_broadcast(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    padding = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(regard.ShapeError, match=r"padding: got shape .*; needs \(2, 6\)"):
        MultiHeadAttention(16, 4, **options)(X, padding=padding)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"padding": ONES}, regard.ShapeError, r"padding: got shape \(2, 1\); needs \(2, 6\)"),
        ({"padding": ONES.float()}, regard.DtypeError, "padding: got dtype torch.float32"),
        ({"mask": ONES[:, 0]}, regard.ShapeError, r"mask: .* broadcasts to \(2, 4, 1, 6\)"),
        (
            {"mask": regard.padding(REAL[:, :3])},
            regard.ShapeError,
            r"padding: keys: got shape \(2, 3\)",
        ),
        ({"query": X[:1, 5:]}, regard.ShapeError, "cache: holds keys of shape"),
        ({"observe": 1}, regard.DtypeError, "observe: got int"),
    ],
)
def test_a_refused_call_leaves_the_cache_as_it_was(
    given: dict[str, Any], error: Any, message: str
) -> None:
    module, cache = MultiHeadAttention(16, 4), KeyValueCache()
    module(X[:, :5], causal=True, cache=cache)
    with pytest.raises(error, match=message):
        module(**{"query": X[:, 5:], "causal": True, "cache": cache} | given)
    assert len(cache) == 5
    found = module(X[:, 5:], causal=True, cache=cache)
    torch.testing.assert_close(found, module(X, causal=True)[:, 5:])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": X[..., :8]}, r"memory: got shape \(2, 6, 8\); needs \(..., length, 16\)"),
        ({"memory": X[:1]}, r"memory: is of batch \(1,\); the target's is \(2,\)"),
        ({"memory_mask": ONES}, r"memory_mask: got shape \(2, 1\); needs \(2, 6\)"),
        ({"target_mask": ONES}, r"target_mask: got shape \(2, 1\); needs \(2, 3\)"),
        ({"target": X[..., :8]}, r"target: got shape \(2, 6, 8\); needs \(..., length, 16\)"),
    ],
)
def test_a_refused_first_step_leaves_the_decoder_as_it_was(
    given: dict[str, Tensor], message: str
) -> None:
    model = Transformer(16, 4, 1, 2, 24).eval()
    cache = model.new_cache()
    with pytest.raises(regard.ShapeError, match=message):
        model.decode(**{"target": X[:, :3], "memory": X, "cache": cache} | given)
    found = model.decode(X[:, :3], X, memory_mask=REAL, cache=cache)
    torch.testing.assert_close(found, model.decode(X[:, :3], X, memory_mask=REAL))


def test_a_decoders_cache_of_another_batch() -> None:
    model = Transformer(16, 4, 1, 1, 24).eval()
    cache = model.new_cache()
    model.decode(X[:, :3], X, cache=cache)
    with pytest.raises(
        regard.ShapeError, match=r"cache: is of batch \(2,\); the target's is \(1,\)"
    ):
        model.decode(X[:1, 3:], X, cache=cache)
    assert len(cache) == 3
