"""What PyTorch models are built from: modules, and `regard.nn.functional`."""

import regard.nn.functional as functional
from regard.nn.additive import AdditiveAttention
from regard.nn.cache import DecoderCache, KeyValueCache, LayerCache
from regard.nn.multi_head import MultiHeadAttention
from regard.nn.multiplicative import MultiplicativeAttention
from regard.nn.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    alibi_slopes,
)
from regard.nn.recurrent import Recurrent, RecurrentDecoder, RecurrentEncoder
from regard.nn.recurrent_cell import RecurrentCache, RecurrentCell
from regard.nn.transformer import Transformer, TransformerDecoder, TransformerEncoder
from regard.nn.transformer_layers import DecoderLayer, EncoderLayer, FeedForward

__all__ = [
    "AdditiveAttention",
    "DecoderCache",
    "DecoderLayer",
    "EncoderLayer",
    "FeedForward",
    "KeyValueCache",
    "LayerCache",
    "LearnedPositions",
    "MultiHeadAttention",
    "MultiplicativeAttention",
    "Recurrent",
    "RecurrentCache",
    "RecurrentCell",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "RotaryPositions",
    "SinusoidalPositions",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "alibi_slopes",
    "functional",
]
