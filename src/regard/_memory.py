"""The soft dictionary: keys and values in, a blend of the values out.

A hard dictionary returns the value of the one key that equals the query. Attention returns all
values, each weighted by how well its key matches:

>>> import numpy as np
>>> memory = Memory()
>>> values = [[0.2, 0.6, 0.4], [0.8, 0.1, 0.3], [0.5, 0.9, 0.7]]
>>> memory.append(np.log([[0.1], [0.3], [0.6]]), values)
>>> memory[[1.0]].round(2)
array([0.56, 0.63, 0.55])
>>> _, weights = memory.look([1.0], weights=True)
>>> weights.round(2)
array([0.1, 0.3, 0.6])

One exact key makes the lookup hard; so does a temperature that falls to 0:

>>> memory = Memory()
>>> memory.append(np.eye(4), [[1.0], [2.0], [3.0], [4.0]])
>>> query = [0.0, 0.0, 1.0, 0.0]
>>> for temperature in (1.0, 0.1, 0.0):
...     value, weights = memory.look(query, temperature=temperature, weights=True)
...     print(temperature, value.round(2), weights.round(2))
1.0 [2.57] [0.22 0.22 0.35 0.22]
0.1 [2.99] [0.01 0.01 0.98 0.01]
0.0 [3.] [0. 0. 1. 0.]
"""

import math
from typing import Any

import numpy as np

from regard._arrays import DTYPES, Array, accept, device_name, dtype_name, is_torch, restore
from regard._attention import attention
from regard._errors import DtypeError, OptionError, ShapeError
from regard._problem import number
from regard._weights import weights as weights_of

# Below this a product of ordinary size, divided by the temperature, leaves float32.
COLDEST = 1e-20


class Memory:
    """A soft dictionary: keys and values are appended, and looked up by how well keys match.

    Keys are (n, d_k) and values (n, d_v). The first that are appended fix the sizes, the kind of
    array and the dtype; nested sequences of numbers are float64 NumPy.
    """

    def __init__(self) -> None:
        self._keys: list[Array] = []
        self._values: list[Array] = []

    def __len__(self) -> int:
        return sum(len(part) for part in self._keys)

    def __repr__(self) -> str:
        if not self._keys:
            return "Memory(empty)"
        d_k, d_v = self._keys[0].shape[-1], self._values[0].shape[-1]
        return f"Memory({len(self)} keys of size {d_k}, values of size {d_v})"

    @property
    def keys(self) -> Array:
        """(n, d_k), in the order they were appended."""
        return _joined(self._keys)

    @property
    def values(self) -> Array:
        """(n, d_v)."""
        return _joined(self._values)

    def append(self, key: Any, value: Any) -> None:
        """Adds one key (d_k,) and value (d_v,), or n of them, (n, d_k) and (n, d_v).

        Raises:
            ShapeError: sizes that differ from each other's or from those held.
            DtypeError: another kind of array, dtype or device than those held.
        """
        key, value = (_entries(x, name) for x, name in ((key, "key"), (value, "value")))
        if len(key) != len(value):
            raise ShapeError(f"value: got {len(value)} values for {len(key)} keys; needs as many")
        _check_alike(value, key, "value")
        if self._keys:
            for name, x, held in (("key", key, self._keys[0]), ("value", value, self._values[0])):
                _check_alike(x, held, name)
                if x.shape[-1] != held.shape[-1]:
                    raise ShapeError(
                        f"{name}: got size {x.shape[-1]}; needs {held.shape[-1]}, as those held"
                    )
        # Copies: what the caller does with the arrays later is not the memory's business.
        self._keys.append(_copy(key))
        self._values.append(_copy(value))

    def __getitem__(self, query: Any) -> Any:
        """`look(query)`."""
        return self.look(query)

    def look(
        self,
        query: Any,
        *,
        top: int | None = None,
        temperature: float = 1.0,
        weights: bool = False,
    ) -> Any:
        """The values blended by softmax(query · keysᵀ / (√d_k x temperature)).

        Args:
            query: (d_k,), or (L, d_k) for several lookups.
            top: read only so many keys, those that match best, 1 to 64.
            temperature: above 1 the blend is more even; toward 0 it becomes the value of the best
                key alone, and 0 is exactly that, the first of equals.
            weights: return the weights too. They carry no gradient; the values read do.

        Returns:
            (d_v,) or (L, d_v), the same kind of array as the query; with `weights`, a pair of it
            and the weights, (n,) or (L, n), zero for the keys that were not read.

        Raises:
            OptionError: an empty memory, top outside 1 to 64 or more than the keys held, or a
                temperature that is negative or positive but below 1e-20.
            ShapeError: a query of another size than the keys.
            DtypeError: a query of another kind, dtype or device than the keys.
        """
        keys, values = self.keys, self.values
        queries = _entries(query, "query")
        _check_alike(queries, keys, "query")
        if queries.shape[-1] != keys.shape[-1]:
            raise ShapeError(
                f"query: got size {queries.shape[-1]}; needs {keys.shape[-1]}, as the keys held"
            )
        scale = _scale(temperature, keys.shape[-1])
        if temperature == 0:
            top = 1
        if top is None:
            blend = attention(queries, keys, values, scale=scale)
            shares = np.asarray(_weights(queries, keys, scale)) if weights else None
        else:
            blend, shares = _blend_of_best(queries, keys, values, scale, top)

        def give(x: Array) -> Any:
            like = queries if isinstance(query, (list, tuple)) else query
            return restore(x[0] if np.ndim(query) == 1 else x, like)

        return (give(blend), give(shares)) if weights else give(blend)


def _blend_of_best(
    queries: Array, keys: Array, values: Array, scale: float, k: int
) -> tuple[Array, np.ndarray]:
    """Blends of the k best values of each query, (L, d_v), and their weights, (L, n)."""
    best = _weights(queries, keys, scale).top(k).keys
    # A key that scores -inf is listed as -1: the last key. That one is then either listed already,
    # and its weight is merely split in two, or scores -inf too and weighs nothing.
    read, alone = keys[best][:, None], queries[:, None, None]
    blend = attention(alone, read, values[best][:, None], scale=scale)[:, 0, 0]
    shares = np.zeros((len(queries), len(keys)))
    chosen = np.asarray(_weights(alone, read, scale))[:, 0, 0]
    np.add.at(shares, (np.arange(len(shares))[:, None], np.asarray(best)), chosen)
    return blend, shares.astype(chosen.dtype)


def _weights(queries: Array, keys: Array, scale: float) -> Any:
    if is_torch(queries):
        queries, keys = queries.detach(), keys.detach()
    return weights_of(queries, keys, scale=scale)


def _scale(temperature: float, d_k: int) -> float:
    temperature = number(temperature, "temperature")
    if temperature != 0 and not (temperature >= COLDEST and math.isfinite(temperature)):
        raise OptionError(f"temperature: needs 0, or {COLDEST:g} or more; got {temperature}")
    return 1 / (math.sqrt(max(d_k, 1)) * (temperature or 1.0))


def _entries(x: Any, name: str) -> Array:
    """One or many vectors as a matrix."""
    if isinstance(x, (list, tuple)):
        try:
            x = np.asarray(x, np.float64)
        except (TypeError, ValueError):
            raise DtypeError(f"{name}: needs an array or nested sequences of numbers") from None
    array = accept(x, name)
    if dtype_name(array) not in DTYPES:
        raise DtypeError(f"{name}: got dtype {dtype_name(array)}; needs one of {', '.join(DTYPES)}")
    if array.ndim not in (1, 2):
        raise ShapeError(f"{name}: got shape {tuple(array.shape)}; needs (d,) or (n, d)")
    return array[None] if array.ndim == 1 else array


def _copy(x: Array) -> Array:
    return x.clone() if is_torch(x) else x.copy()


def _check_alike(x: Array, held: Array, name: str) -> None:
    def kind(array: Array) -> str:
        library = "torch" if is_torch(array) else "NumPy"
        return f"{library} {dtype_name(array)} on {device_name(array)}"

    if kind(x) != kind(held):
        raise DtypeError(f"{name}: got {kind(x)}; needs {kind(held)}, as the keys")


def _joined(parts: list[Array]) -> Array:
    """All parts in one, which replaces them."""
    if len(parts) > 1:
        if is_torch(parts[0]):
            import torch

            parts[:] = [torch.cat(parts)]
        else:
            parts[:] = [np.concatenate(parts)]
    if not parts:
        raise OptionError("memory: holds no key yet; append one before looking")
    return parts[0]
