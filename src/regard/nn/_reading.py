"""What a module reads in one forward pass, told to `regard.watch`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Reading:
    """One forward pass.

    Attributes:
        shape: (batch, L) of the vectors that are read.
        start: the position of the first of them.
        real: (batch, L), True where one is no padding; None where all are.
        source: how many positions of an encoder it may attend to; None where there is no encoder.
        moves: how often the entries of its cache changed places.
    """

    shape: tuple[int, int]
    start: int = 0
    real: Tensor | None = None
    source: int | None = None
    moves: int = 0


class Reader(nn.Module, ABC):
    """A module whose forward passes are those that a trace joins to one run.

    An encoder, a decoder, a decoder's cell: calls with a later start go on where others ended.
    """

    @abstractmethod
    def reading(self, given: Mapping[str, Any]) -> Reading:
        """What a call with these arguments of `forward`, by name, reads."""
