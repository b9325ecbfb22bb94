"""How a query and a key are matched: their product unless a score says otherwise.

A score is fitted and narrowed like a bias (see `_bias`); where there is none, it is query · key.
"""

from dataclasses import dataclass
from typing import Any

from regard._arrays import DTYPES, Array, accept, broadcast, dtype_name
from regard._errors import DtypeError, ShapeError


@dataclass(frozen=True, eq=False)
class Additive:
    """vector · tanh(query + key)."""

    vector: Array  # (d,) or (heads, d); bound: (heads, d)

    def bind(self, heads: int, d: int) -> "Additive":
        """This score fitted to heads of d features.

        Raises:
            ShapeError: the vector has another shape.
        """
        got = tuple(self.vector.shape)
        if got not in ((d,), (heads, d)):
            raise ShapeError(
                f"additive: got a vector of shape {got}; needs (d,) = ({d},) or "
                f"(heads, d) = ({heads}, {d})"
            )
        return Additive(broadcast(self.vector, (heads, d)))

    def select(self, heads: Any) -> "Additive":
        """A bound score for some heads."""
        return Additive(self.vector[heads])


def additive(vector: Any) -> Additive:
    """The additive score, vector · tanh(query + key) (Bahdanau et al. 2014, arXiv 1409.0473).

    Given as `score=` it takes the place of the product of query and key; these are then the
    projected ones, W q and U k, of the same number of features. What follows the score (scale,
    which is 1 unless given, softcap, bias, mask, softmax) stays the same.

    Args:
        vector: (d,), or (heads, d) for a vector of each head; floating point.

    Raises:
        DtypeError: the vector is not floating point.
    """
    array = accept(vector, "additive: vector")
    if dtype_name(array) not in DTYPES:
        needed = ", ".join(DTYPES)
        raise DtypeError(f"additive: got a vector of {dtype_name(array)}; needs one of {needed}")
    return Additive(array)


def as_score(score: Any) -> Additive | None:
    """Raises DtypeError unless it is a score, or None."""
    if score is None or isinstance(score, Additive):
        return score
    raise DtypeError(
        f"score: got {type(score).__name__}; needs regard.additive(vector), or None for the "
        "product of query and key"
    )
