"""transformers' masks as masks of regard, and the tensor that carries them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CACHE
from transformers import BertConfig, DynamicCache, LlamaConfig
from transformers import masking_utils as stock

import regard.hf
from regard._masks import Dense
from regard._watch import masks
from regard._watch.masks import CarriedMask, make_mask

pytestmark = pytest.mark.once

B, L = 3, 37


def visible(carried: CarriedMask, shape: tuple[int, ...]) -> np.ndarray:
    """Where a mask lets a query attend: where weights of equal scores are not zero."""
    mask, bias = carried.parts()
    batch, _, rows, columns = shape
    query, key = torch.zeros(batch, 1, rows, 1), torch.zeros(batch, 1, columns, 1)
    return np.asarray(regard.weights(query, key, mask=mask, bias=bias)) > 0


def padded(left: int = 0, right: int = 0) -> torch.Tensor:
    mask = torch.ones(B, L, dtype=torch.long)
    mask[1, :left] = 0
    mask[2, L - right :] = 0
    return mask


def made_by(name: str, attention: str, config: Any = None, **given: Any) -> Any:
    """What one of transformers' own makers returns for an attention implementation."""
    config = config or LlamaConfig(sliding_window=9, attention_chunk_size=8)
    config._attn_implementation = attention
    arguments = {"attention_mask": None, CACHE: None, **given}
    return getattr(stock, name)(config=config, inputs_embeds=torch.zeros(B, L, 4), **arguments)


POSITIONS = torch.cat([torch.arange(20), torch.arange(5), torch.arange(12)]).expand(B, L)
BLOCKS = torch.full((B, L), -1)
BLOCKS[:, 5:9], BLOCKS[1, 20:30] = 0, 1
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("create_causal_mask", {}),
    "causal, left padding": ("create_causal_mask", {"attention_mask": padded(left=7)}),
    "causal, right padding": ("create_causal_mask", {"attention_mask": padded(right=7)}),
    "causal, no padding": ("create_causal_mask", {"attention_mask": padded()}),
    "packed": ("create_causal_mask", {"position_ids": POSITIONS}),
    "blocks": ("create_causal_mask", {"block_sequence_ids": BLOCKS}),
    "sliding": ("create_sliding_window_causal_mask", {}),
    "sliding, padding": ("create_sliding_window_causal_mask", {"attention_mask": padded(5, 9)}),
    "sliding, packed": ("create_sliding_window_causal_mask", {"position_ids": POSITIONS}),
    "chunked": ("create_chunked_causal_mask", {}),
    "chunked, left padding": ("create_chunked_causal_mask", {"attention_mask": padded(left=5)}),
    "both ways": ("create_bidirectional_mask", {}),
    "both ways, padding": ("create_bidirectional_mask", {"attention_mask": padded(4, 6)}),
    "both ways, sliding": ("create_bidirectional_sliding_window_mask", {}),
    "across": (
        "create_bidirectional_mask",
        {"encoder_hidden_states": torch.zeros(B, 11, 4), "attention_mask": padded(4)[:, :11]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_stock_masks_stay_descriptions_and_mean_the_same(case: str) -> None:
    name, given = CASES[case]
    carried = made_by(name, "regard", **given)
    assert isinstance(carried, CarriedMask)
    seen = visible(carried, tuple(carried.shape))
    assert carried._full is None, "it was expanded"
    eager = made_by(name, "eager", **given)
    expected = np.ones(carried.shape, bool) if eager is None else (eager == 0).numpy()
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, carried.shape))


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("mask", [None, padded(left=7)])
def test_masks_with_a_cache(window: int | None, mask: torch.Tensor | None) -> None:
    """Queries start at token 30; with a window the keys do not start at token 0."""
    config = LlamaConfig(sliding_window=window, num_hidden_layers=1)
    maker = "create_causal_mask" if window is None else "create_sliding_window_causal_mask"
    cache = DynamicCache(config=config)
    past = torch.zeros(B, 1, 30, 4)
    cache.update(past, past, 0)
    given: dict[str, Any] = {CACHE: cache}
    if mask is not None:
        given["attention_mask"] = torch.cat([mask[:, :30], torch.ones_like(mask)], 1)
    carried = made_by(maker, "regard", config, **given)
    expected = (made_by(maker, "eager", config, **given) == 0).numpy()
    assert isinstance(carried, CarriedMask)
    assert carried.shape[-1] == (67 if window is None else 8 + L)
    np.testing.assert_array_equal(
        visible(carried, tuple(carried.shape)), np.broadcast_to(expected, carried.shape)
    )
    assert carried._full is None


def odd_keys(batch: Any, head: Any, q: Any, kv: Any) -> Any:
    return kv % 2 == 1


def dilated(batch: Any, head: Any, q: Any, kv: Any) -> Any:
    return (q - kv) % 3 == 0


def every(n: int, batch: Any, head: Any, q: Any, kv: Any) -> Any:
    return (q - kv) % n == 0


@pytest.mark.parametrize(
    "given",
    [
        {"and_mask_function": dilated, "attention_mask": padded(3, 3)},
        {"or_mask_function": odd_keys},
        {"and_mask_function": dilated, "position_ids": POSITIONS},
        {"and_mask_function": partial(every, 3)},
        {"and_mask_function": partial(every, 3), "position_ids": POSITIONS},
    ],
    ids=["and", "or", "packed", "partial", "packed partial"],
)
def test_unknown_masks_are_evaluated_when_asked_for(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "ROWS", 10)
    carried = made_by("create_causal_mask", "regard", **given)
    assert isinstance(carried, CarriedMask)
    assert carried._full is None, "it was expanded"
    eager = made_by("create_causal_mask", "eager", **given)
    np.testing.assert_array_equal(
        visible(carried, tuple(carried.shape)), (eager == 0).expand(B, 1, L, L).numpy()
    )


def test_an_unknown_function_is_asked_for_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masks, "ROWS", 10)
    asked = []

    def odd(batch: Any, head: Any, q: Any, kv: Any) -> Any:
        asked.append(q.shape[2])
        return (q - kv) % 2 == 1

    mask = make_mask(1, 25, 40, q_offset=15, mask_function=odd)
    distance = np.arange(15, 40)[:, None] - np.arange(40)
    np.testing.assert_array_equal(visible(mask, (1, 1, 25, 40))[0, 0], distance % 2 == 1)
    assert asked == [10, 10, 5]
    mask.parts()
    assert len(asked) == 3, "it was asked again"


def test_positions_that_jump_within_a_packed_sequence_are_expanded() -> None:
    """By position such a row is something else than by distance in the row."""
    positions = torch.tensor([[0, 5, 6, 1]])
    function = stock.and_masks(
        stock.remap_positions_for_packed_sequence(stock.causal_mask_function, positions),
        stock.packed_sequence_mask_function(torch.zeros(1, 4, dtype=torch.long)),
    )
    mask = make_mask(1, 4, 4, mask_function=function)
    assert isinstance(mask.parts()[0], Dense)
    expected = positions[0, :, None] >= positions[0, None]
    np.testing.assert_array_equal(visible(mask, (1, 1, 4, 4))[0, 0], expected.numpy())


def test_a_mask_tells_where_its_queries_and_keys_stand() -> None:
    for function in (stock.causal_mask_function, dilated):
        mask = make_mask(1, 2, 9, torch.tensor(30), 23, mask_function=function)
        assert (mask.q_offset, mask.kv_offset) == (30, 23)


def test_a_window_of_no_width_shows_nothing() -> None:
    function = stock.sliding_window_causal_mask_function(0)
    mask = make_mask(1, 3, 3, mask_function=function)
    assert not visible(mask, (1, 1, 3, 3)).any()
    assert (mask.full() < 0).all()


def carried_and_full(dtype: torch.dtype = torch.float32) -> tuple[CarriedMask, torch.Tensor]:
    """A mask, and the one that transformers makes for eager attention."""
    given: dict[str, Any] = {"attention_mask": padded(3, 4).bool(), "dtype": dtype}
    full = stock.eager_mask(B, L, L, **given)
    assert isinstance(full, torch.Tensor)
    return make_mask(B, L, L, **given), full


def test_a_carried_mask_tells_its_shape_and_passes_on_without_memory() -> None:
    carried, full = carried_and_full()
    assert (carried.shape, carried.dtype, carried.device) == (full.shape, full.dtype, full.device)
    assert (carried.ndim, carried.size(-1), carried.numel()) == (4, L, full.numel())
    same = carried.contiguous().to("cpu").to(torch.float32)
    assert same is carried
    assert carried._full is None
    assert "Both" in repr(carried)


OPERATIONS = {
    "slice": lambda m: m[:, :, 2:5, :7],
    "bool": lambda m: m == 0,
    "double": lambda m: m.double(),
    "where": lambda m: torch.where(m == 0, 0.0, -1.0),
    "masked_fill": lambda m: m.masked_fill(torch.ones(L, L).tril().bool(), 2.0),
    "add": lambda m: torch.ones(B, 4, L, L) + m,
    "added to": lambda m: m + torch.ones(B, 4, L, L),
    "cat": lambda m: torch.cat([m, m], -1),
    "expand": lambda m: m.expand(B, 4, L, L),
    "clone": lambda m: m.clone(),
    "sum": lambda m: (m < 0).sum(),
    "sdpa": lambda m: torch.nn.functional.scaled_dot_product_attention(
        *torch.ones(3, B, 2, L, 4), attn_mask=m
    ),
    "numpy": lambda m: torch.from_numpy(m.numpy()),
    "asarray": lambda m: torch.from_numpy(np.asarray(m)),
    "tolist": lambda m: torch.tensor(m.tolist()),
    "item": lambda m: torch.tensor(m[0, 0, 1, 1].item()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_operation_makes_it_the_full_mask_of_eager(name: str) -> None:
    carried, full = carried_and_full()
    assert torch.equal(OPERATIONS[name](carried), OPERATIONS[name](full))
    assert carried.parts()[0] is None
    assert torch.equal(carried.parts()[1], full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_full_mask_has_the_models_dtype(dtype: torch.dtype) -> None:
    carried, full = carried_and_full(dtype)
    assert carried.dtype == dtype
    assert torch.equal(carried + 0, full)


def test_changes_in_place_are_kept() -> None:
    masks = carried_and_full()
    for mask in masks:
        mask[..., 5] = -torch.inf
        mask[0].mul_(0.5)
        mask.masked_fill_(torch.eye(L, dtype=torch.bool), 0.0)
    assert torch.equal(masks[0].parts()[1], masks[1])


def test_the_mask_is_always_given() -> None:
    """Where transformers would pass None, which means causal to some models and full to others."""
    bert = BertConfig()
    assert made_by("create_bidirectional_mask", "sdpa", bert) is None
    carried = made_by("create_bidirectional_mask", "regard", bert)
    assert isinstance(carried, CarriedMask)
    assert carried.parts() == (None, None)
