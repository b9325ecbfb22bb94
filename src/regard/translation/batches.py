"""Batches of sentence pairs of like length, as many as a number of tokens allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.translation.vocabulary import BEGIN, END, PAD

Tokens = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Batch:
    """Padded sentences.

    Attributes:
        source: (n, S) int64, each sentence with its end.
        target: (n, L + 1), each with its begin and end: the decoder reads all but the last
            column and is to predict all but the first.
    """

    source: Tensor
    target: Tensor

    @property
    def predicted(self) -> int:
        """Tokens that the decoder is to predict."""
        return int((self.target[:, 1:] != PAD).sum())


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """(n, longest) int64, filled up with PAD."""
    width = max(map(len, sequences), default=0)
    return torch.tensor([[*s, *([PAD] * (width - len(s)))] for s in sequences], dtype=torch.int64)


def collate(pairs: Sequence[Tokens]) -> Batch:
    return Batch(
        pad([[*source, END] for source, _ in pairs]),
        pad([[BEGIN, *target, END] for _, target in pairs]),
    )


def groups(
    lengths: Sequence[tuple[int, int]], tokens: int, order: Sequence[int]
) -> list[list[int]]:
    """Places of sentence pairs, sorted by length and cut where a batch is full.

    Args:
        lengths: of each source and target.
        tokens: how many a batch may hold on the longer side, padding included. A longer sentence
            is a batch by itself.
        order: a permutation of the places; pairs of the same lengths stay in this order.
    """
    found: list[list[int]] = []
    longest = 0
    for place in sorted(order, key=lambda i: (max(lengths[i]), lengths[i])):
        longest = max(longest, *lengths[place])
        if not found or (len(found[-1]) + 1) * longest > tokens:
            found.append([])
            longest = max(lengths[place])
        found[-1].append(place)
    return found


class Epochs:
    """Training batches in an order that depends on the seed and the epoch alone.

    Any process can therefore tell which batch is which: a resumed run goes on where it was, and
    one of several processes takes its own share.
    """

    def __init__(self, pairs: Sequence[Tokens], tokens: int, seed: int) -> None:
        self.pairs, self.tokens, self.seed = pairs, tokens, seed
        self._lengths = [(len(source) + 1, len(target) + 1) for source, target in pairs]

    def batches(self, epoch: int, process: int = 0, processes: int = 1) -> list[list[int]]:
        """One process's share, of the same number of batches for each; or of none."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        found = groups(self._lengths, self.tokens, order)
        mixed = torch.randperm(len(found), generator=generator).tolist()
        usable = len(found) // processes * processes
        return [found[i] for i in mixed[process:usable:processes]]

    def after(
        self, epoch: int, place: int, process: int = 0, processes: int = 1
    ) -> Iterator[tuple[int, int, Batch]]:
        """Without end: the epoch, the place in it that follows, and the batch."""
        while True:
            shares = self.batches(epoch, process, processes)
            for index in range(place, len(shares)):
                yield epoch, index + 1, collate([self.pairs[i] for i in shares[index]])
            epoch, place = epoch + 1, 0
