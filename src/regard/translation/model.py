"""The model: one table of vectors for both languages, and what regard.nn makes of them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import OptionError
from regard.nn._drop import dropout
from regard.nn.positions import SinusoidalPositions
from regard.nn.recurrent import Recurrent
from regard.nn.transformer import Transformer
from regard.translation import checks
from regard.translation.vocabulary import PAD

ATTENTIONS = {"additive": "additive", "fixed": None}  # of recurrent models
KINDS = ("transformer", *ATTENTIONS)


@dataclass(frozen=True)
class Config:
    """What a model is, apart from its weights.

    Attributes:
        kind: "transformer" (Vaswani et al. 2017), or recurrent: with "additive" attention (Bahdanau
            et al. 2014), or with one "fixed" summary of the source (Cho et al. 2014).
        pieces: of the vocabulary.
        size: of the vectors.
        heads: of each attention of a Transformer.
        encoder_layers, decoder_layers: how many.
        inner: size of a Transformer's feed-forward layers, or of recurrent states.
        dropout: while training.
        length: tokens of a sentence, its end included, at most.

    Raises:
        OptionError: no such kind, or numbers that cannot be or do not fit each other.
    """

    kind: str = "transformer"
    pieces: int = 6000
    size: int = 256
    heads: int = 4
    encoder_layers: int = 3
    decoder_layers: int = 2
    inner: int = 768
    dropout: float = 0.1
    length: int = 256

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"kind: got {self.kind!r}; needs one of {', '.join(KINDS)}")
        checks.whole("vocabulary", self.pieces, 1)
        for name in ("size", "heads", "encoder_layers", "decoder_layers", "inner"):
            checks.whole(name, getattr(self, name), 1)
        checks.whole("length", self.length, 2)
        checks.share("dropout", self.dropout)
        if self.kind == "transformer" and (self.size % 2 or self.size % self.heads):
            raise OptionError(
                f"size: got {self.size}; needs to be even, and a multiple of heads, {self.heads}"
            )


class TranslationModel(nn.Module):
    """Tokens to the logits of the tokens that follow.

    The table of vectors is also the output layer (Press and Wolf 2017), and both languages share
    it, since they share a vocabulary.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.pieces, config.size, padding_idx=PAD)
        nn.init.normal_(self.table.weight, std=config.size**-0.5)
        with torch.no_grad():
            self.table.weight[PAD].zero_()
        recurrent = config.kind in ATTENTIONS
        self.positions = None if recurrent else SinusoidalPositions(config.size)
        self.network = _network(config)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """States after each target token, which `logits` takes: (n, L, size).

        Args:
            source: (n, S) int64, PAD after each sentence.
            target: (n, L), what the decoder has read.
        """
        return self.decode(target, *self.encode(source))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's states (n, S, size), and where they are real (n, S)."""
        real = source != PAD
        memory: Tensor = self.network.encode(self._vectors(source), real)
        return memory, real

    def decode(self, target: Tensor, memory: Tensor, real: Tensor, cache: Any = None) -> Tensor:
        """(n, L, size); with a cache, target holds only the tokens that it has not seen yet."""
        start = 0 if cache is None else len(cache)
        states: Tensor = self.network.decode(
            self._vectors(target, start), memory, memory_mask=real, cache=cache
        )
        return states

    def new_cache(self) -> Any:
        """An empty one, for `decode` to go on with from call to call."""
        return self.network.new_cache()

    def logits(self, states: Tensor) -> Tensor:
        """(..., pieces)."""
        return nn.functional.linear(states, self.table.weight)

    def _vectors(self, tokens: Tensor, start: int = 0) -> Tensor:
        vectors = self.table(tokens) * math.sqrt(self.config.size)
        if self.positions is not None:
            vectors = self.positions(vectors, start)
        return dropout(vectors, self.config.dropout, self.training)


def _network(config: Config) -> Any:
    """From vectors to vectors; all kinds have the same methods."""
    if config.kind == "transformer":
        return Transformer(
            config.size,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.inner,
            dropout=config.dropout,
        )
    return Recurrent(
        config.size,
        attention=ATTENTIONS[config.kind],
        hidden=config.inner,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        dropout=config.dropout,
    )
