"""What PyTorch models are built from: modules, and `regard.nn.functional`."""

import regard.nn.functional as functional
from regard.nn.cache import KeyValueCache
from regard.nn.multi_head import MultiHeadAttention
from regard.nn.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    alibi_slopes,
)
from regard.nn.transformer import (
    DecoderCache,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    LayerCache,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)

__all__ = [
    "DecoderCache",
    "DecoderLayer",
    "EncoderLayer",
    "FeedForward",
    "KeyValueCache",
    "LayerCache",
    "LearnedPositions",
    "MultiHeadAttention",
    "RotaryPositions",
    "SinusoidalPositions",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "alibi_slopes",
    "functional",
]
