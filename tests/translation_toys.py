"""A toy language pair for tests of the translator: words, and the same backwards."""

import random

from regard.translation.corpus import Pair
from regard.translation.model import Config
from regard.translation.train import Settings

LETTERS = "abcdefgh"
PIECES = 4 + 256 + len(LETTERS) + 1  # special tokens, bytes, letters, the space: no longer pieces

TINY = Config(
    pieces=PIECES,
    size=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    inner=32,
    dropout=0.1,
    length=40,
)
SHORT = Settings(tokens=200, rate=5e-3, warmup=10, steps=24, every=8)


def reversals(count: int, seed: int, longest: int = 6) -> list[Pair]:
    """Words of one letter to `longest`, and each from its end to its beginning."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices(LETTERS, k=drawn.randint(1, longest))) for _ in range(count)]
    return [(word, word[::-1]) for word in words]
