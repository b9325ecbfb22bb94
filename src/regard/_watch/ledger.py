"""What stands at each position of a run: padding, prompt, or what was generated."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from regard._arrays import float64


@dataclass(frozen=True, eq=False)
class Positions:
    """The tokens of one batch entry, number by number.

    Attributes:
        start: the position of token 0; positions before it were in the cache when the run began,
            and their tokens are not known.
        padding: (tokens,), True where the attention_mask hides a token.
        prompt: (tokens,), True where a token was given.
        generated: (tokens,), True where the model read a token that it had put out: all after the
            last forward pass that read more than one token, if it was not the first pass.
    """

    start: int
    padding: np.ndarray
    prompt: np.ndarray
    generated: np.ndarray

    def __len__(self) -> int:
        return len(self.padding)

    @property
    def real(self) -> np.ndarray:
        """(tokens,), True where there is no padding."""
        return ~self.padding

    @property
    def of_tokens(self) -> range:
        """The position of each token, as `Layer.queries` and `Layer.keys` count."""
        return range(self.start, self.start + len(self))

    @property
    def cached(self) -> range:
        """Positions that were in the cache when the run began."""
        return range(self.start)

    def __repr__(self) -> str:
        kinds = ("padding", "prompt", "generated")
        counts = ", ".join(f"{int(getattr(self, kind).sum())} {kind}" for kind in kinds)
        return f"Positions({len(self)} tokens from {self.start}: {counts})"


def positions(start: int, count: int, mask: Any, passes: list[int]) -> Positions:
    """The ledger of one batch entry.

    Args:
        start, count: the position of the first token, and how many tokens there are.
        mask: (positions,) or None, 1 where real; its last entry is the last token's.
        passes: how many tokens each forward pass read, as far as that is known.
    """
    padding = np.zeros(count, bool)
    if mask is not None and mask.shape[-1] >= count > 0:
        padding = ~float64(mask)[-count:].astype(bool)
    steps = 0
    while steps < len(passes) - 1 and passes[-1 - steps] == 1:
        steps += 1
    later = np.arange(count) >= count - steps
    return Positions(start, padding, ~later & ~padding, later & ~padding)
