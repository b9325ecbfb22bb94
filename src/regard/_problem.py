"""One attention to compute: arguments checked and normalised, once.

Every error about shapes, dtypes and options is raised here, so that a backend can trust what it
gets and no backend accepts what another refuses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regard._arrays import (
    DTYPES,
    Array,
    accept,
    broadcast,
    device_name,
    dtype_name,
    is_torch,
    requires_grad,
)
from regard._bias import Bias, as_bias
from regard._errors import DtypeError, OptionError, ShapeError
from regard._masks import Mask, Sizes, as_mask
from regard._score import Additive, as_score

PRECISIONS = ("highest", "high")
GREATEST = 3e38  # of the options that multiply scores: within the range of float32


@dataclass(frozen=True, eq=False)
class Problem:
    """softmax(scores) · value, with all that shapes the scores.

    query (*batch, heads, L, d_k), key (*batch, kv_heads, S, d_k), value (*batch, kv_heads, S, d_v);
    all NumPy or all torch, of one dtype and device. Mask and bias are bound to L_total queries, of
    which this problem holds L, the first of them number `row`.
    """

    query: Array
    key: Array
    value: Array | None  # None: only the weights are asked about
    mask: Mask | None
    bias: Bias | None
    scale: float
    softcap: float | None
    sinks: Array | None  # (heads,)
    score: Additive | None = None  # None: query · key
    dropout: float = 0.0
    seed: int = 0  # which weights are dropped
    precision: str = "highest"
    row: int = 0
    L_total: int = 0

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.query.shape[:-3])

    @property
    def heads(self) -> int:
        return int(self.query.shape[-3])

    @property
    def kv_heads(self) -> int:
        return int(self.key.shape[-3])

    @property
    def L(self) -> int:
        return int(self.query.shape[-2])

    @property
    def S(self) -> int:
        return int(self.key.shape[-2])

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.batch, self.heads, self.L, self.S)

    @property
    def d_k(self) -> int:
        return int(self.query.shape[-1])

    @property
    def d_v(self) -> int:
        return 0 if self.value is None else int(self.value.shape[-1])

    @property
    def dtype(self) -> str:
        return dtype_name(self.query)

    @property
    def device(self) -> str:
        return device_name(self.query)

    @property
    def needs_grad(self) -> bool:
        """Whether torch expects gradients to flow through this problem."""
        if not is_torch(self.query):
            return False
        import torch

        return torch.is_grad_enabled() and any(map(requires_grad, self.arrays()))

    def arrays(self) -> list[Array]:
        """Every array that a gradient could reach."""
        from_bias = () if self.bias is None else vars(self.bias).values()
        vector = None if self.score is None else self.score.vector
        return [self.query, self.key, self.value, self.sinks, vector, *from_bias]

    def rows(self, start: int, stop: int) -> "Problem":
        """The same problem for queries start to stop of those held."""
        return replace(self, query=self.query[..., start:stop, :], row=self.row + start)

    def select(self, batch: tuple[Any, ...], head: Any) -> "Problem":
        """The same problem for some batch entries and heads: an int or a slice for every batch
        dimension, then an int (whose axis stays, of size 1), a slice, or a list of the heads.
        Steps are positive."""
        heads = slice(head, head + 1) if isinstance(head, int) else head
        kv = self._key_heads(heads if isinstance(heads, list) else range(self.heads)[heads])
        return replace(
            self,
            query=self.query[(*batch, heads)],
            key=self.key[batch][..., kv, :, :],
            value=None if self.value is None else self.value[batch][..., kv, :, :],
            mask=None if self.mask is None else self.mask.select(batch, heads),
            bias=None if self.bias is None else self.bias.select(batch, heads),
            sinks=None if self.sinks is None else self.sinks[heads],
            score=None if self.score is None else self.score.select(heads),
        )

    def _key_heads(self, heads: Sequence[int]) -> slice | list[int]:
        """The key heads of some heads: a slice where equally many of the heads read each."""
        group = self.heads // max(self.kv_heads, 1)
        read = [head // group for head in heads]
        if not read:
            return slice(0, 0)
        shared = slice(read[0], read[-1] + 1)
        each = len(read) // (shared.stop - shared.start)
        even = [kv for kv in range(shared.start, shared.stop) for _ in range(each)]
        return shared if read == even else read


def make_problem(
    query: Any,
    key: Any,
    value: Any | None,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout: float = 0.0,
    score: Any = None,
    precision: str = "highest",
    seed: int = 0,
) -> Problem:
    """A Problem from the arguments of `regard.attention`, and the seed of its dropout.

    Raises:
        ShapeError, DtypeError, OptionError: an argument does not fit; see each check below.
    """
    q, k = accept(query, "query"), accept(key, "key")
    v = None if value is None else accept(value, "value")
    _check_kinds(q, k, "key")
    if v is not None:
        _check_kinds(q, v, "value")
    shapes = q.shape, k.shape, k.shape if v is None else v.shape
    _check_shapes(*shapes)
    if q.ndim == 2:
        q, k, v = q[None], k[None], None if v is None else v[None]
    elif not shapes[0][:-3] == shapes[1][:-3] == shapes[2][:-3]:
        q, k, v = _share_batch(q, k, v)
    batch, (heads, L, d_k), S = tuple(q.shape[:-3]), q.shape[-3:], k.shape[-2]
    if mask is not None or bias is not None:
        sizes = Sizes(batch, heads, L, S)
        mask = None if mask is None else as_mask(mask).bind(sizes)
        bias = None if bias is None else as_bias(bias).bind(sizes)
    score = as_score(score)
    problem = Problem(
        query=q,
        key=k,
        value=v,
        mask=mask,
        bias=bias,
        scale=_scale(scale, d_k if score is None else 1),
        softcap=_softcap(softcap),
        sinks=_sinks(sinks, heads),
        score=None if score is None else score.bind(heads, d_k),
        dropout=_dropout(dropout),
        seed=seed,
        precision=_precision(precision),
        L_total=L,
    )
    if bias is not None or sinks is not None or score is not None:
        _check_gradients(problem)
    return problem


def _precision(precision: Any) -> str:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise OptionError(f"precision: got {precision!r}; needs one of {', '.join(PRECISIONS)}")
    return precision


def _check_kinds(q: Array, x: Array, name: str) -> None:
    if dtype_name(q) not in DTYPES:
        raise DtypeError(f"query: got dtype {dtype_name(q)}; needs one of {', '.join(DTYPES)}")
    if is_torch(x) != is_torch(q):
        raise DtypeError(f"{name}: needs to be the same kind of array as query, got {type(x)}")
    if x.dtype != q.dtype:
        raise DtypeError(f"{name}: got dtype {dtype_name(x)}; needs query's {dtype_name(q)}")
    if x.device != q.device:
        raise DtypeError(f"{name}: is on {device_name(x)}; needs query's {device_name(q)}")


def _check_shapes(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> None:
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) < 2:
            raise ShapeError(f"{name}: got shape {tuple(shape)}; needs (*batch, heads, L, d)")
        if (len(shape) == 2) != (len(query) == 2):
            raise ShapeError(
                f"{name}: got {len(shape)} dimensions where query has {len(query)}; a "
                "two-dimensional array is one head, and all or none must be"
            )
    if key[-1] != query[-1]:
        raise ShapeError(f"key: got d_k = {key[-1]}; needs query's {query[-1]}")
    if value[-2] != key[-2]:
        raise ShapeError(f"value: got S = {value[-2]}; needs key's {key[-2]}")
    if len(query) == 2:
        return
    heads, kv_heads = query[-3], key[-3]
    if value[-3] != kv_heads:
        raise ShapeError(f"value: got {value[-3]} heads; needs key's {kv_heads}")
    if heads % kv_heads if kv_heads else heads:
        raise ShapeError(f"query: got {heads} heads; needs a multiple of key's {kv_heads}")


def _share_batch(query: Array, key: Array, value: Array | None) -> list[Array | None]:
    """All arrays with the batch dimensions they broadcast to, as views."""
    arrays = {"query": query, "key": key, "value": value}
    shapes = {name: tuple(x.shape[:-3]) for name, x in arrays.items() if x is not None}
    try:
        batch = np.broadcast_shapes(*shapes.values())
    except ValueError:
        named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"query, key, value: batch dimensions do not fit: {named}") from None
    return [None if x is None else broadcast(x, (*batch, *x.shape[-3:])) for x in arrays.values()]


def _scale(scale: float | None, d_k: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(d_k) if d_k else 1.0
    scale = number(scale, "scale")
    if not abs(scale) <= GREATEST:
        raise OptionError(f"scale: needs a number that float32 holds, got {scale}")
    return scale


def _softcap(softcap: float | None) -> float | None:
    if softcap is None:
        return None
    softcap = number(softcap, "softcap")
    if not 1 / GREATEST <= softcap <= GREATEST:
        raise OptionError(f"softcap: needs a positive float32 number or None, got {softcap}")
    return softcap


def _sinks(sinks: Any, heads: int) -> Array | None:
    if sinks is None:
        return None
    array = accept(sinks, "sinks")
    if tuple(array.shape) != (heads,):
        raise ShapeError(f"sinks: got shape {tuple(array.shape)}; needs (heads,) = ({heads},)")
    if dtype_name(array) not in DTYPES:
        raise DtypeError(f"sinks: got dtype {dtype_name(array)}; needs one of {', '.join(DTYPES)}")
    return array


def _dropout(dropout: float) -> float:
    dropout = number(dropout, "dropout")
    if not 0.0 <= dropout < 1.0:
        raise OptionError(f"dropout: needs 0 or more and less than 1, got {dropout}")
    return dropout


def number(x: Any, name: str) -> float:
    """x as a float.

    Raises:
        DtypeError: x is no number, or a tensor that requires a gradient.
    """
    if is_torch(x) and x.requires_grad:
        raise DtypeError(
            f"{name}: requires a gradient, which only arrays of numbers to attend with can carry; "
            "a learned scale can multiply the query instead"
        )
    try:
        return float(x)
    except (TypeError, ValueError):
        raise DtypeError(f"{name}: got {type(x).__name__}; needs a number") from None


def _check_gradients(problem: Problem) -> None:
    """No tensor is detached silently because the query is a NumPy array."""
    if not is_torch(problem.query) and any(map(requires_grad, problem.arrays())):
        raise DtypeError(
            "query: is a NumPy array, and sinks, bias or the score's vector is a tensor that "
            "requires a gradient; give a torch query, or detach them"
        )
