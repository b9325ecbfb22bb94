"""The most probable translation: token by token, or among several that are kept (beam search)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard._errors import ModelError
from regard.translation.model import TranslationModel
from regard.translation.vocabulary import BEGIN, END, PAD, UNKNOWN

LONGER = 2.0  # a translation has at most this many tokens for one of its source, and
SLACK = 16  # this many more


@dataclass(frozen=True)
class Found:
    """A translation in tokens.

    Attributes:
        tokens: without begin, and without end unless it was reached.
        score: the logarithm of its probability, divided by its length to the power of `penalty`.
        finished: whether its end was reached before the limit of tokens.
    """

    tokens: list[int]
    score: float
    finished: bool


@torch.inference_mode()
def search(
    model: TranslationModel, source: Tensor, *, beam: int = 1, penalty: float = 1.0
) -> list[Found]:
    """Translations of a batch of sentences.

    Args:
        source: (n, S) int64, each with its end, PAD after it.
        beam: translations that are kept at every step; 1 is the greedy choice.
        penalty: a translation of T tokens, its end included, has its logarithm divided by
            T^penalty before it is compared with others.

    Returns:
        One for each sentence.

    Raises:
        ModelError: what the model computes is not a number.
    """
    memory, real = model.encode(source)
    n = len(source)
    memory, real = (x.repeat_interleave(beam, 0) for x in (memory, real))
    most = [int(LONGER * length) + SLACK for length in (source != PAD).sum(1).tolist()]
    most = [min(limit, model.config.length) for limit in most]
    cache = model.new_cache()

    def step(tokens: Tensor) -> Tensor:
        states = model.decode(tokens[:, None].to(source.device), memory, real, cache)
        return model.logits(states[:, 0]).log_softmax(-1).cpu()

    def reorder(indices: Tensor) -> None:
        # Beams change places within a sentence only.
        cache.reorder(indices.to(source.device), memory=False)

    return kept_best(step, reorder, n, beam, most, penalty)


def kept_best(
    step: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], Any],
    n: int,
    beam: int,
    most: list[int],
    penalty: float,
) -> list[Found]:
    """Beam search over any model of the next token.

    A sentence is done when `beam` of its translations have ended while they were among the best, or
    when none that is open can overtake the best of them: logarithms only fall, so an open one is
    worth at most what it has now over the greatest length.

    Args:
        step: the last token of each of n * beam translations to log-probabilities of the next,
            (n * beam, pieces). It remembers what it was given before.
        reorder: tells the memory that translation i goes on from indices[i].
        most: tokens that the translation of each sentence may have, its end included.
    """
    open_ = torch.full((n, beam), -torch.inf)
    open_[:, 0] = 0.0  # at first all are the same: one is enough
    tokens = torch.full((n * beam,), BEGIN)
    history = torch.empty(n, beam, 0, dtype=torch.int64)
    ends = [_Ends(beam, limit, penalty) for limit in most]
    first = torch.arange(n)[:, None] * beam
    for _ in range(max(most, default=0)):
        log = step(tokens).float()
        log[:, [PAD, UNKNOWN, BEGIN]] = -torch.inf  # bytes spell what the vocabulary lacks
        pieces = log.shape[1]
        total = (open_.view(-1, 1) + log).view(n, beam * pieces)
        best, places = total.topk(2 * beam)  # half of them may be ends
        if bool(best[:, 0].isnan().any()):  # NaN counts as the greatest
            raise ModelError("model: gives probabilities that are NaN; its weights are broken")
        origin, chosen = places // pieces, places % pieces
        grown = history.gather(1, origin[..., None].expand(-1, -1, history.shape[2]))
        grown = torch.cat([grown, chosen[..., None]], 2)
        for one, values, texts in zip(ends, best, grown, strict=True):
            one.take(values.tolist(), texts)
        if all(one.closed for one in ends):
            break
        open_, kept = best.masked_fill(chosen == END, -torch.inf).topk(beam)
        history = grown.gather(1, kept[..., None].expand(-1, -1, grown.shape[2]))
        tokens = history[..., -1].flatten()
        reorder((origin.gather(1, kept) + first).flatten())
    return [one.best() for one in ends]


class _Ends:
    """The finished translations of one sentence, and whether a better one can still come."""

    def __init__(self, beam: int, limit: int, penalty: float) -> None:
        self.beam, self.limit, self.penalty = beam, limit, penalty
        self.found: list[Found] = []
        self.closed = limit < 1

    def take(self, values: list[float], texts: Tensor) -> None:
        """What the sentence's translations have become, the most probable first."""
        if self.closed:
            return
        length = texts.shape[1]
        rows = texts.tolist()
        last = length == self.limit
        for value, row in zip(values[: self.beam], rows, strict=False):
            finished = row[-1] == END
            if (finished or last) and value > -torch.inf:
                tokens = row[:-1] if finished else row
                self.found.append(Found(tokens, value / length**self.penalty, finished))
        self.found.sort(key=lambda f: (f.finished, f.score), reverse=True)
        going = [v for v, row in zip(values, rows, strict=True) if row[-1] != END]
        enough = last or len(self.found) >= self.beam
        self.closed = enough or not going or going[0] == -torch.inf or self._beaten(going[0])

    def _beaten(self, value: float) -> bool:
        """Whether no open translation, worth at most this much now, can become the best."""
        return bool(self.found) and self.found[0].score >= value / self.limit**self.penalty

    def best(self) -> Found:
        return self.found[0] if self.found else Found([], 0.0, True)
