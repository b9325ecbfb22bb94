"""One attention of a run, as it is looked at afterwards."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from regard._arrays import float64, is_torch, restore
from regard._errors import ModelError, ShapeError
from regard._observation import Observation
from regard._problem import Problem
from regard._weights import Weights


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention of the run: all its queries, of every forward pass, against all its keys.

    Attributes:
        number: its place in the order in which the model's attentions first ran, from 0.
        name: the module's, as `model.named_modules()` gives it, or the class's of the model itself;
            a module that runs more than once in a pass (weights shared among layers) has "#2",
            "#3", ... from its second call on.
        heads: which of the model's heads are held.
        queries, keys: the positions of rows and columns. Padding has positions too; of a run that
            began with a filled cache the first is not 0.
        sequence: whose positions the queries are: "input" for the tokens that the model reads,
            "decoder" for those of an encoder-decoder's decoder, "other" for what has no tokens.
        cross: whether the keys are another sequence's, as where a decoder attends to an encoder.
        observation: what was asked for, and the lse.
    """

    number: int
    name: str
    heads: tuple[int, ...]
    queries: range
    keys: range
    sequence: str
    cross: bool
    observation: Observation
    kept: Weights | None

    @property
    def weights(self) -> Weights:
        """(batch, heads, L, S), lazy; rows of padded queries are zero.

        Raises:
            ModelError: the run kept statistics only.
        """
        if self.kept is None:
            raise ModelError(
                f"weights: {self.name} kept statistics only; needs "
                'regard.watch(..., keep="weights")'
            )
        return self.kept

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The heads, by number, that share a key/value head, group by group.

        Raises:
            ModelError: as `weights`.
        """
        of = heads_per_group(self.weights.problem)
        pairs = list(zip(of, self.heads, strict=True))
        return tuple(tuple(h for g, h in pairs if g == group) for group in dict.fromkeys(of))

    def by_group(self, x: Any) -> Any:
        """A statistic averaged over the heads of each key/value group.

            layer.by_group(layer.weights.received(last=64)) / 64      # what SnapKV ranks keys by

        Args:
            x: (batch, heads, ...), as the weights and the observation give it.

        Returns:
            (batch, groups, ...), the same kind of array.

        Raises:
            ShapeError: x has other heads; ModelError: as `weights`.
        """
        of = np.array(heads_per_group(self.weights.problem))
        if x.ndim < 2 or x.shape[1] != len(of):
            raise ShapeError(f"by_group: got shape {tuple(x.shape)}; needs (batch, {len(of)}, ...)")
        numbers = float64(x)
        means = [numbers[:, of == group].mean(axis=1) for group in dict.fromkeys(of.tolist())]
        found = restore(np.stack(means, axis=1), x)
        return found.to(x.dtype) if is_torch(x) else found.astype(x.dtype)

    def described(self) -> dict[str, Any]:
        """What it is, without what was seen of it, as JSON holds it."""
        return {
            "number": self.number,
            "name": self.name,
            "heads": list(self.heads),
            "queries": [self.queries.start, self.queries.stop],
            "keys": [self.keys.start, self.keys.stop],
            "sequence": self.sequence,
            "cross": self.cross,
        }

    def __repr__(self) -> str:
        size = f"{len(self.heads)} heads, {len(self.queries)} x {len(self.keys)}"
        return f"Layer({self.number}, {self.name}: {size})"


def heads_per_group(problem: Problem) -> list[int]:
    """The key/value group of each head, from 0.

    Where some heads were chosen, a key head may be held once for each of them: those that hold
    the same keys are one group.
    """
    key = problem.key
    of: list[int] = []
    for kv in range(problem.kv_heads):
        same = (
            kv > 0 and problem.S > 0 and bool((key[..., kv, :, :] == key[..., kv - 1, :, :]).all())
        )
        of.append(of[-1] + (not same) if of else 0)
    group = problem.heads // max(problem.kv_heads, 1)
    return [number for number in of for _ in range(group)]
