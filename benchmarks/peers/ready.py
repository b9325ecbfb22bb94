"""What a peer gives back: a call to be timed, and how to read what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import Case, Inputs

Tensors = tuple[torch.Tensor, ...]
MOST_WEIGHTS = 1 << 30  # bytes


class UnservedError(Exception):
    """A peer cannot or should not compute a case; the message says why."""


@dataclass(frozen=True)
class Ready:
    """`call` computes and is all that is timed; what precedes and follows it is not.

    `read` turns what it returned into the context, or the context and the gradients of query, key
    and value, each (1, heads, length, d). `copies` are the bytes of inputs that had to be
    laid out anew for the peer: no part of what its call needs on top of them.
    A peer that reads and writes memory it does not own has it in one of the two closures.
    """

    call: Callable[[], Any]
    read: Callable[[Any], Tensors]
    copies: int = 0


Peer = Callable[[Case, Inputs], Ready]


def without_gradients(case: Case) -> None:
    """For peers that serve inference alone.

    Raises:
        UnservedError: gradients are asked for.
    """
    if case.gradients:
        raise UnservedError("has no gradients")


def room_for_weights(case: Case) -> None:
    """For peers that store the weights, and scores and masks as large beside them.

    Raises:
        UnservedError: more than MOST_WEIGHTS.
    """
    if case.bytes_of_weights > MOST_WEIGHTS:
        size, most = case.bytes_of_weights / 1e9, MOST_WEIGHTS / 1e9
        raise UnservedError(
            f"stores the weights: {size:.1f} GB, several times over; "
            f"not run here above {most:.1f} GB"
        )
