"""The comparison of three kinds of translators: what needs no training."""

import pytest
import torch

from regard.translation.compare import KINDS, Line, equal_sizes, verdict
from regard.translation.figure import drawn
from regard.translation.model import TranslationModel
from regard.translation.scores import Score

pytestmark = pytest.mark.once


def test_a_comparison_of_one_length_tells_nothing_of_lengths() -> None:
    one = Score(1.0, 0.1, "")
    lines = [Line(kind, words, 1, one, one, 0) for kind in KINDS for words in (None, (1, 10))]
    assert verdict(lines[::2]) == verdict(lines)
    assert verdict(lines).startswith("Lengths were not compared")
    assert drawn([("none", [])]).startswith(b"<?xml")


@pytest.mark.parametrize("size", [256, 200, 258])
def test_kinds_of_the_comparison_have_as_many_weights(size: int) -> None:
    configs = equal_sizes(6000, size)
    with torch.device("meta"):
        models = [TranslationModel(config) for config in configs.values()]
    weights = [sum(x.numel() for x in model.parameters()) for model in models]
    assert max(weights) / min(weights) < 1.01
