"""What `regard.nn` gives."""

import types

import pytest
import torch

import regard.nn

pytestmark = pytest.mark.once

PUBLIC = """
    functional
    MultiHeadAttention AdditiveAttention MultiplicativeAttention KeyValueCache
    SinusoidalPositions LearnedPositions RotaryPositions alibi_slopes
    Transformer TransformerEncoder TransformerDecoder EncoderLayer DecoderLayer FeedForward
    DecoderCache LayerCache
    Recurrent RecurrentEncoder RecurrentDecoder RecurrentCell RecurrentCache
"""


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(regard.nn.__all__) == sorted(PUBLIC.split())


def test_nothing_else_is_in_sight() -> None:
    """Apart from the modules themselves, which Python puts there."""
    visible = {
        name
        for name, value in vars(regard.nn).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible | {"functional"} == set(regard.nn.__all__)


def test_every_public_name_is_documented_and_so_is_what_a_module_takes() -> None:
    for name in regard.nn.__all__:
        kind = getattr(regard.nn, name)
        assert kind.__doc__, name
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            assert kind.forward.__doc__, name
