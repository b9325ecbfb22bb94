"""Positions: the formulas of the papers."""

import copy
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import regard
from regard.nn import LearnedPositions, RotaryPositions, SinusoidalPositions, alibi_slopes

pytestmark = pytest.mark.once


def test_sines_and_cosines() -> None:
    found = SinusoidalPositions(6, base=100.0)(torch.zeros(2, 5, 6))
    for p in range(5):
        for i in range(3):
            angle = torch.tensor(p / 100 ** (2 * i / 6))
            torch.testing.assert_close(found[1, p, 2 * i], angle.sin())
            torch.testing.assert_close(found[1, p, 2 * i + 1], angle.cos())


@pytest.mark.parametrize("positions", [SinusoidalPositions(8), RotaryPositions(8)])
def test_a_start_beyond_what_was_made_before(positions: Any) -> None:
    """Tables grow; a position has the same numbers whenever it is met."""
    x = torch.randn(1, 400, 8)
    whole = positions(x)
    assert torch.equal(positions(x[:, 300:], 300), whole[:, 300:])
    assert torch.equal(type(positions)(8)(x[:, 399:], 399), whole[:, 399:])


def test_far_positions_are_exact() -> None:
    """Angles made in float32 would be off by 1e-3 here."""
    found = SinusoidalPositions(2)(torch.zeros(1, 100_000, 2))[0, -1]
    angle = torch.tensor(99_999, dtype=torch.float64)
    torch.testing.assert_close(found.double(), torch.stack([angle.sin(), angle.cos()]))


@pytest.mark.parametrize("kind", [SinusoidalPositions, RotaryPositions])
class TestTables:
    """They hold what the formula says, whatever becomes of the module around them."""

    def test_no_cast_rounds_them(self, kind: Any) -> None:
        positions, x = kind(8), torch.randn(1, 300, 8)
        expected = positions(x)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            positions.to(dtype)(x.to(dtype))
        assert torch.equal(positions.float()(x), expected)
        positions.bfloat16()
        assert torch.equal(positions(x), expected)

    def test_float64_is_exact(self, kind: Any) -> None:
        positions, x = kind(8), torch.zeros(1, 300, 8)
        x[..., 0] = kind is RotaryPositions  # which is turned, so that its cosine is left
        positions(x)
        angle = torch.tensor(299, dtype=torch.float64)
        expected = angle.cos() if kind is RotaryPositions else angle.sin()
        for module in (positions, positions.double()):
            found = module(x.double())[0, -1, 0]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)

    def test_of_inference_serve_training(self, kind: Any) -> None:
        positions = kind(8)
        with torch.inference_mode():
            positions(torch.randn(1, 5, 8))
        x = torch.randn(1, 5, 8, requires_grad=True)
        positions(x).square().sum().backward()
        assert x.grad is not None

    def test_of_a_transform_or_another_device_are_not_kept(self, kind: Any) -> None:
        positions, x = kind(8), torch.randn(1, 5, 8)
        torch.func.grad(lambda x: positions(x).sum())(x)
        with FakeTensorMode():
            positions(torch.randn(1, 5, 8))
        assert positions(torch.zeros(1, 5, 8, device="meta")).is_meta
        assert torch.equal(copy.deepcopy(positions)(x), kind(8)(x))


@pytest.mark.parametrize(
    "positions", [LearnedPositions(5, 8), SinusoidalPositions(8), RotaryPositions(8)], ids=str
)
def test_no_position_is_before_the_first(positions: Any) -> None:
    with pytest.raises(regard.OptionError, match="start: needs 0 or more, got -1"):
        positions(torch.zeros(1, 2, 8), -1)


def test_learned() -> None:
    positions = LearnedPositions(5, 4)
    found = positions(torch.zeros(2, 3, 4), 2)
    assert torch.equal(found[0], positions.weight[2:5])
    with pytest.raises(regard.ShapeError, match="x: reaches position 5; there are 5 learned ones"):
        positions(torch.zeros(2, 3, 4), 3)


def test_turned_scores_depend_on_the_distance_alone() -> None:
    positions, q, k = RotaryPositions(8), torch.randn(8), torch.randn(8)
    queries, keys = positions(q.expand(1, 20, 8)), positions(k.expand(1, 20, 8))
    scores = (queries @ keys.mT)[0]
    for distance in (-7, 0, 3):
        same = scores.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same))
    torch.testing.assert_close(scores[0, 0], q @ k)


def test_pairs_are_halves() -> None:
    """Numbers i and i + d_k / 2, as Llama has it."""
    found = RotaryPositions(4)(torch.tensor([[[0.0] * 4, [1.0, 0.0, 0.0, 0.0]]]))[0, 1]
    angle = torch.tensor(1.0)
    torch.testing.assert_close(found, torch.stack([angle.cos(), 0 * angle, angle.sin(), 0 * angle]))


def test_slopes() -> None:
    """8 heads of the paper, and 6 as its code has them."""
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(6).tolist() == [2.0**-x for x in (2, 4, 6, 8, 1, 3)]


@pytest.mark.parametrize("kind", [SinusoidalPositions, RotaryPositions])
def test_sizes_and_bases_that_do_not_fit(kind: Any) -> None:
    with pytest.raises(regard.OptionError, match="size: needs an even number of 2 or more, got 5"):
        kind(5)
    with pytest.raises(regard.OptionError, match="base: needs a positive number, got 0"):
        kind(4, base=0)
    with pytest.raises(
        regard.ShapeError, match=r"x: got shape \(1, 3, 6\); needs \(..., length, 4"
    ):
        kind(4)(torch.zeros(1, 3, 6))
    with pytest.raises(regard.OptionError, match="heads: needs 1 or more, got 0"):
        alibi_slopes(0)
