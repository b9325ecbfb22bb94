"""Masks: what each of them says, compositions, and narrowing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import masks

import regard
from regard._arrays import float64
from regard._masks import Grid, Mask, Sizes, as_mask

pytestmark = pytest.mark.once


def shown(mask: Any, L: int, S: int, batch: tuple[int, ...] = (), heads: int = 1) -> np.ndarray:
    """The mask as booleans (*batch, heads, L, S), without the axes of an unbatched single head."""
    bound = as_mask(mask).bind(Sizes(batch, heads, L, S))
    array = np.broadcast_to(evaluated(bound, L, S), (*batch, heads, L, S))
    return array[0] if batch == () and heads == 1 else array


def evaluated(bound: Mask, L: int, S: int) -> np.ndarray:
    return np.asarray(bound.visible(Grid(slice(0, L, 1), slice(0, S, 1), float64)))


def pattern(text: str) -> np.ndarray:
    return np.array([[c == "x" for c in line] for line in text.split()])


@pytest.mark.parametrize(
    ("mask", "want"),
    [
        (regard.causal(), "x.... xx... xxx.."),
        (regard.causal(1), "xx... xxx.. xxxx."),
        (regard.causal(-1), "..... x.... xx..."),
        (regard.causal("end"), "xxx.. xxxx. xxxxx"),
        (regard.window(1), "xxxxx xxxxx .xxxx"),
        (regard.window(0, 0), "x.... .x... ..x.."),
        (regard.window(1, 1), "xx... xxx.. .xxx."),
        (regard.window(None, 1), "xx... xxx.. xxxx."),
        (regard.window(None, None), "xxxxx xxxxx xxxxx"),
        (regard.window(1, 0, offset=2), ".xx.. ..xx. ...xx"),
        (regard.window(0, 0, offset="end"), "..x.. ...x. ....x"),
        (regard.causal() & regard.window(1), "x.... xx... .xx.."),
        (regard.lengths(2), "xx... xx... xx..."),
        (regard.lengths(0), "..... ..... ....."),
        (regard.lengths(9), "xxxxx xxxxx xxxxx"),
        (regard.prefix(2), "xx... xx... xxx.."),
        (regard.prefix(0), "x.... xx... xxx.."),
        (regard.prefix(2, offset="end"), "xxx.. xxxx. xxxxx"),
        (regard.padding(np.array([1, 0, 1, 1, 0], bool)), "x.xx. x.xx. x.xx."),
        (
            regard.padding(np.array([1, 0, 1, 1, 0], bool), np.array([1, 0, 1], bool)),
            "x.xx. ..... x.xx.",
        ),
        (
            regard.documents(np.array([4, 4, 7]), np.array([4, 4, 7, 7, 9])),
            "xx... xx... ..xx.",
        ),
        (regard.dense(np.array([[True], [False], [True]])), "xxxxx ..... xxxxx"),
        (regard.causal() | regard.lengths(2), "xx... xx... xxx.."),
        (regard.causal() & regard.lengths(2), "x.... xx... xx..."),
    ],
)
def test_what_a_mask_shows(mask: Any, want: str) -> None:
    np.testing.assert_array_equal(shown(mask, 3, 5), pattern(want))


class TestPerBatch:
    def test_offsets(self) -> None:
        got = shown(regard.causal(np.array([0, 2])), 3, 5, batch=(2,))
        want = [pattern("x.... xx... xxx.."), pattern("xxx.. xxxx. xxxxx")]
        np.testing.assert_array_equal(got[:, 0], want)

    def test_lengths_as_a_list(self) -> None:
        got = shown(regard.lengths([1, 3]), 1, 5, batch=(2,))
        np.testing.assert_array_equal(got[:, 0], [pattern("x...."), pattern("xxx..")])

    def test_prefixes(self) -> None:
        got = shown(regard.prefix(torch.tensor([0, 4])), 2, 5, batch=(2,))
        want = [pattern("x.... xx..."), pattern("xxxx. xxxx.")]
        np.testing.assert_array_equal(got[:, 0], want)

    def test_padding(self) -> None:
        keys = np.array([[1, 1, 0], [0, 1, 1]], bool)
        got = shown(regard.padding(keys), 1, 3, batch=(2,))
        np.testing.assert_array_equal(got[:, 0, 0], keys)

    def test_dense_of_one_batch_entry_and_all_heads(self) -> None:
        array = np.random.default_rng(0).random((4, 3, 5)) < 0.5
        got = shown(array, 3, 5, batch=(2,), heads=4)
        np.testing.assert_array_equal(got, [array, array])


class TestComposition:
    def test_a_boolean_array_is_a_mask_on_either_side(self) -> None:
        array = np.array([1, 0, 1, 1, 1], bool)
        for mask in (array & regard.causal(), regard.causal() & array):
            np.testing.assert_array_equal(shown(mask, 3, 5), pattern("x.... x.... x.x.."))
        for mask in (array | regard.causal(), regard.causal() | array):
            np.testing.assert_array_equal(shown(mask, 3, 5), pattern("x.xxx xxxxx xxxxx"))

    def test_a_tensor_is_a_mask_too(self) -> None:
        mask = regard.causal() & torch.tensor([True, False, True, True, True])
        np.testing.assert_array_equal(shown(mask, 3, 5), pattern("x.... x.... x.x.."))

    @given(seed=st.integers(0, 2**32))
    def test_it_is_logic_number_by_number(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b, c = (rng.random((3, 5)) < 0.5 for _ in range(3))
        dense = [regard.dense(x) for x in (a, b, c)]
        got = shown((dense[0] & dense[1]) | dense[2], 3, 5)
        np.testing.assert_array_equal(got, (a & b) | c)


@given(data=st.data())
def test_a_selection_shows_what_the_whole_shows_there(data: st.DataObject) -> None:
    full = (3, 2, 4, 5, 6)
    mask = data.draw(masks(full)).bind(Sizes((3, 2), 4, 5, 6))
    whole = np.broadcast_to(evaluated(mask, 5, 6), full)
    some = mask.select((1, slice(None)), slice(2, 4))
    np.testing.assert_array_equal(
        np.broadcast_to(evaluated(some, 5, 6), (2, 2, 5, 6)), whole[1, :, 2:4]
    )
    one = mask.select((2, 0), slice(3, 4))
    np.testing.assert_array_equal(
        np.broadcast_to(evaluated(one, 5, 6), (1, 5, 6)), whole[2, 0, 3:4]
    )


@given(data=st.data())
def test_a_tile_shows_what_the_whole_shows_there(data: st.DataObject) -> None:
    full = (2, 3, 9, 11)
    mask = data.draw(masks(full)).bind(Sizes((2,), 3, 9, 11))
    whole = np.broadcast_to(evaluated(mask, 9, 11), full)
    tile = mask.visible(Grid(slice(2, 9, 3), slice(1, 8, 2), float64))
    np.testing.assert_array_equal(np.broadcast_to(tile, (2, 3, 3, 4)), whole[..., 2:9:3, 1:8:2])


def test_a_broadcast_array_is_never_expanded() -> None:
    """A tile of a mask that is one row for a million queries costs a tile."""
    mask = regard.dense(np.ones(10**6, bool)).bind(Sizes((8,), 16, 10**6, 10**6))
    tile = mask.visible(Grid(slice(5, 7, 1), slice(0, 10**6, 10**5), float64))
    assert tile.shape == (8, 16, 2, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: regard.causal(2**63),
        lambda: regard.causal(2**61),
        lambda: regard.lengths(2**63),
        lambda: regard.window(2**63),
        lambda: regard.window(True),
    ],
)
def test_positions_out_of_this_world_are_refused(make: Any) -> None:
    with pytest.raises(regard.OptionError, match=r"at most 2\*\*60|64 bits"):
        make()
