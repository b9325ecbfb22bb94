"""What kind of head each head of a run is, in numbers, from the kernels' passes alone.

The mass that a row gives to some keys is exp(lse of those keys - lse of all), and the lse of some
keys is that of the same attention under one more mask. So no weight is ever stored, and masks that
hide whole blocks cost next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from regard._arrays import float64, is_torch
from regard._attention import attend
from regard._backends import pick
from regard._bias import DenseBias
from regard._errors import OptionError
from regard._masks import Band, Dense, Documents, Mask, Padding
from regard._problem import Problem
from regard._watch.reading import Reading, View, learned
from regard._weights import LSE, Weights

SCORES = ("sink", "previous", "duplicate", "induction", "entropy", "evenness", "distance")


class HeadScore(NamedTuple):
    """One head's number."""

    layer: int
    head: int
    score: float


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Means over the rows of one sequence, for every head: (layers, heads) each.

    Rows of padding, and rows that see fewer than two keys, count in no mean; nan where no row
    counts.

    Attributes:
        layers: numbers of the layers, in order.
        heads: numbers of each layer's heads.
        sink: weight on the first token, together with that on a learned sink.
        previous: weight from a token to the one before it, where that is in sight.
        duplicate: weight from a token to earlier occurrences of itself, where one is in sight.
        induction: weight from a token to those that followed its earlier occurrences, where one is
            in sight: the prefix matching score of Olsson et al. 2022 on a repeated random sequence
            (`regard.induction`); on other texts tokens repeat for many reasons.
        entropy: in nats, a learned sink included.
        evenness: the entropy as a share of the greatest that the row could have, 0 to 1.
        distance: tokens between a query and a key, as the weights weigh them.
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    sink: np.ndarray
    previous: np.ndarray
    duplicate: np.ndarray
    induction: np.ndarray
    entropy: np.ndarray
    evenness: np.ndarray
    distance: np.ndarray

    def top(self, name: str, count: int = 5) -> list[HeadScore]:
        """The heads with the greatest scores of a name, in falling order.

        Raises:
            OptionError: there is no score of that name, or count is less than 1.
        """
        if name not in SCORES:
            raise OptionError(f"top: got {name!r}; needs one of {', '.join(SCORES)}")
        if count < 1:
            raise OptionError(f"top: got {count}; needs a number of heads from 1 on")
        scores = getattr(self, name)
        order = np.argsort(-scores, axis=None, kind="stable")[:count]
        places = [divmod(int(at), scores.shape[1]) for at in order]
        return [
            HeadScore(self.layers[i], self.heads[i][j], float(scores[i, j]))
            for i, j in places
            if np.isfinite(scores[i, j])
        ]

    def __repr__(self) -> str:
        return f"HeadScores({', '.join(f.name for f in fields(self)[2:])}: {self.sink.shape})"


def scored(reading: Reading, views: Sequence[View], ids: np.ndarray | None) -> HeadScores:
    """The body of `Trace.head_scores`; ids: (tokens,), None where there are none.

    Raises:
        OptionError: layers with other numbers of heads make no one array.
    """
    if len({len(view.heads) for view in views}) > 1:
        raise OptionError("layers: have other numbers of heads, which make no one array; name some")
    found = []
    for view in views:
        parts = [_scores(view, part, reading.first, ids) for part in view.parts]
        found.append({name: np.concatenate([part[name] for part in parts]) for name in SCORES})
    return HeadScores(
        tuple(view.layer.number for view in views),
        tuple(view.heads for view in views),
        **{name: np.stack([one[name] for one in found]) for name in SCORES},
    )


def _scores(
    view: View, weights: Weights, first: int, ids: np.ndarray | None
) -> dict[str, np.ndarray]:
    """(heads,) each."""
    problem, at = weights.problem, view.offset
    lse = float64(weights.lse())
    count = _visible_keys(problem)
    counts = count > 1.5

    def mean(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        rows = np.broadcast_to(rows & counts, x.shape)
        number = rows.sum(axis=-1)
        total = np.where(rows, x, 0.0).sum(axis=-1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def seen(mask: Mask) -> np.ndarray:
        return mean(*mass(problem, mask, lse))

    none = np.full(problem.heads, np.nan)
    onto_first, _ = mass(problem, one_key(problem.S, first + at), lse)
    entropy = float64(weights.entropy())
    most = np.log(count.clip(2.0) + (problem.sinks is not None))
    earlier, after = (none, none) if ids is None else map(seen, _repeats(ids, at))
    return {
        "sink": mean(onto_first + learned(problem, lse), counts),
        "previous": seen(Band(at - 1, 0, 0)),
        "duplicate": earlier,
        "induction": after,
        "entropy": mean(entropy, counts),
        "evenness": mean(entropy / most, counts),
        "distance": mean(_distance(problem, at, lse), counts),
    }


def _repeats(ids: np.ndarray, at: int) -> tuple[Mask, Mask]:
    """Earlier occurrences of the row's token, and the tokens that followed them."""
    cached = np.full(at, -1)  # whose tokens are not known
    same = Documents(ids, np.concatenate([cached, ids]))
    follows = Documents(ids, np.concatenate([cached, [-1], ids[:-1]]))
    return same & Band(at - 1, right=0), follows & Band(at, right=0)


def one_key(S: int, column: int) -> Mask:
    return Padding(np.arange(S) == column)


def mass(problem: Problem, allowed: Mask, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(heads, L) weight on the keys that a mask allows too, and whether there are any."""
    part = _lse(_masked(problem, allowed))
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(part), np.exp(part - lse), 0.0), np.isfinite(part)


def _masked(problem: Problem, allowed: Mask) -> Problem:
    bound = allowed.bind(problem.sizes)
    mask = bound if problem.mask is None else problem.mask & bound
    return replace(problem, mask=mask, sinks=None)


def _lse(problem: Problem) -> np.ndarray:
    return float64(pick(problem, LSE)[0].run(problem, LSE)[1].lse)


def _visible_keys(problem: Problem) -> np.ndarray:
    """(heads, L), how many keys a row sees: where all scores are 0, the lse is its logarithm."""
    if isinstance(problem.bias, DenseBias):
        problem = _masked(problem, Dense(problem.bias.array != -np.inf))
    alike = replace(
        problem,
        query=problem.query[..., :1] * 0,
        key=problem.key[..., :1] * 0,
        bias=None,
        softcap=None,
        sinks=None,
    )
    return np.asarray(np.exp(_lse(alike)))


def _distance(problem: Problem, at: int, lse: np.ndarray) -> np.ndarray:
    """(heads, L), the mean of |i - j|: the context of values that are the keys' own numbers, of
    the keys before a query and of those after it. In float64, else far keys would drown near
    ones."""
    own = np.arange(problem.L) + at
    total, whole = np.zeros_like(lse), np.zeros_like(lse)
    query, key = _double(problem.query), _double(problem.key)
    numbers = key[..., :1] * 0 + _arange(key)
    for side, sign in ((Band(at, right=0), 1.0), (Band(at + 1, left=0), -1.0)):
        part = _masked(replace(problem, query=query, key=key, value=numbers), side)
        context, seen = attend(part, LSE)
        with np.errstate(invalid="ignore"):
            mass = np.exp(float64(seen.lse) - np.where(np.isfinite(lse), lse, np.inf))
        total += mass * sign * (own - float64(context)[..., 0])
        whole += mass
    return np.asarray(total / np.where(whole > 0, whole, 1.0))


def _double(x: Any) -> Any:
    return x.detach().double() if is_torch(x) else x.astype(np.float64)


def _arange(key: Any) -> Any:
    numbers = np.arange(key.shape[-2], dtype=np.float64)[:, None]
    if not is_torch(key):
        return numbers
    import torch

    return torch.as_tensor(numbers, device=key.device)
