"""Masks and biases in a file: a tree that says what they are, and tensors that it names.

They stay descriptions there. An array that was broadcast is kept as small as it was before.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard._arrays import Array, is_torch, raw, tensor
from regard._bias import Alibi, Bias, DenseBias, Relative, alibi, as_bias, relative
from regard._errors import FileError
from regard._masks import (
    FARTHEST,
    Band,
    Both,
    Dense,
    Documents,
    Either,
    Mask,
    Padding,
    dense,
    documents,
    lengths,
    padding,
    window,
)
from regard._watch.trace_tensors import Contents, Opened, flag, member, whole

DEEPEST = 64  # masks within masks
PACKED = 4096  # booleans from which on eight of them share a byte


def describe_mask(mask: Mask | None, contents: Contents, depth: int = 0) -> Any:
    """A bound mask as JSON, its arrays among the contents.

    Raises:
        FileError: masks are nested too deeply, or of a kind that has no description.
    """
    if depth > DEEPEST:
        raise FileError(f"mask: is composed of more than {DEEPEST} levels")
    match mask:
        case None:
            return None
        case Band(offset, left, right, first):
            count = None if first is None else _numbers(first, contents)
            sides = {"left": _int(left), "right": _int(right)}
            return {"kind": "band", "offset": _numbers(offset, contents), **sides, "first": count}
        case Padding(keys, queries):
            seen = None if queries is None else contents.put("mask", _compact(queries))
            return {
                "kind": "padding",
                "keys": contents.put("mask", _compact(keys)),
                "queries": seen,
            }
        case Documents(query_ids, key_ids):
            ids = (contents.put("mask", _compact(x)) for x in (query_ids, key_ids))
            return {"kind": "documents", **dict(zip(("queries", "keys"), ids, strict=True))}
        case Dense(array):
            return _describe_dense(_compact(array), contents)
        case Both(a, b) | Either(a, b):
            parts = (describe_mask(part, contents, depth + 1) for part in (a, b))
            kind = "both" if isinstance(mask, Both) else "either"
            return {"kind": kind, **dict(zip("ab", parts, strict=True))}
    raise FileError(f"mask: {type(mask).__name__} has no description in a file")


def read_mask(tree: Any, opened: Opened, depth: int = 0) -> Mask | None:
    """The mask of a description, not bound yet.

    Raises:
        FileError, and what masks raise: the description is not one, or its arrays are others.
    """
    if tree is None:
        return None
    if depth > DEEPEST:
        raise FileError(f"mask: is composed of more than {DEEPEST} levels")
    kind = member(tree, "kind")
    if kind == "band":
        return _read_band(tree, opened)
    if kind == "padding":
        queries = member(tree, "queries")
        keys = opened.get(member(tree, "keys"), "padding", "flags")
        return padding(keys, queries and opened.get(queries, "padding", "flags"))
    if kind == "documents":
        ids = (opened.get(member(tree, side), kind, "integers") for side in ("queries", "keys"))
        return documents(*ids)
    if kind == "dense":
        return dense(opened.get(member(tree, "array"), "mask", "flags"))
    if kind == "packed":
        return dense(_unpacked(tree, opened))
    if kind in ("both", "either"):
        a, b = (read_mask(member(tree, side), opened, depth + 1) for side in "ab")
        if a is not None and b is not None:
            return a & b if kind == "both" else a | b
    raise FileError(f"mask: got {tree!r:.60}, which this version of regard does not know")


def describe_bias(bias: Bias | None, contents: Contents) -> Any:
    """A bound bias as JSON, its arrays among the contents.

    Raises:
        FileError: a kind that has no description.
    """
    match bias:
        case None:
            return None
        case DenseBias(array):
            return {"kind": "dense", "array": contents.put("bias", _compact(array))}
        case Alibi(slopes, offset):
            slopes = contents.put("bias", slopes)
            return {"kind": "alibi", "slopes": slopes, "offset": _int(offset)}
        case Relative(table, bidirectional, farthest, offset):
            return {
                "kind": "relative",
                "table": contents.put("bias", table),
                "bidirectional": bool(bidirectional),
                "max_distance": _int(farthest),
                "offset": _int(offset),
            }
    raise FileError(f"bias: {type(bias).__name__} has no description in a file")


def read_bias(tree: Any, opened: Opened) -> Bias | None:
    """The bias of a description, not bound yet.

    Raises:
        FileError, and what biases raise: the description is not one, or its arrays are others.
    """
    if tree is None:
        return None
    kind = member(tree, "kind")
    if kind == "dense":
        return as_bias(opened.get(member(tree, "array"), "bias", "numbers"))
    if kind not in ("alibi", "relative"):
        raise FileError(f"bias: got {tree!r:.60}, which this version of regard does not know")
    offset = whole(member(tree, "offset"), "offset", -FARTHEST)
    if kind == "alibi":
        return alibi(opened.get(member(tree, "slopes"), "alibi", "numbers"), offset)
    return relative(
        opened.get(member(tree, "table"), "relative", "numbers"),
        bidirectional=flag(member(tree, "bidirectional"), "bidirectional"),
        max_distance=whole(member(tree, "max_distance"), "max_distance"),
        offset=offset,
    )


def _describe_dense(array: Array, contents: Contents) -> Any:
    columns = int(array.shape[-1])
    if np.prod(array.shape) < PACKED or columns == 1:
        return {"kind": "dense", "array": contents.put("mask", array)}
    bits = np.packbits(raw(tensor(array, "cpu")), axis=-1)
    return {"kind": "packed", "bits": contents.put("mask", bits), "columns": columns}


def _unpacked(tree: Any, opened: Opened) -> Tensor:
    name, columns = member(tree, "bits"), whole(member(tree, "columns"), "columns")
    bits = opened.get(name, "mask", "bits")
    if not bits.ndim or bits.shape[-1] != -(-columns // 8):
        raise FileError(f"mask: got {tuple(bits.shape)} bytes for rows of {columns} booleans")

    def unpack() -> Tensor:
        flags = np.unpackbits(raw(bits), axis=-1, count=columns)
        return torch.from_numpy(flags.view(np.bool_))

    return opened.once((name, columns), unpack)


def _read_band(tree: Any, opened: Opened) -> Mask:
    def numbers(x: Any, what: str, least: int) -> Any:
        if isinstance(x, str):
            return opened.get(x, what, "integers")
        return whole(x, what, least)

    left, right = (
        None if x is None else whole(x, "band") for x in map(tree.get, ("left", "right"))
    )
    band = window(left, right, numbers(member(tree, "offset"), "offset", -FARTHEST))
    first = member(tree, "first")
    if first is None:
        return band
    counted: Any = lengths(numbers(first, "first", 0))
    return replace(band, first=counted.first)  # type: ignore[type-var]


def _numbers(x: Array, contents: Contents) -> Any:
    """One integer, or the name of a tensor of several."""
    array = _compact(x)
    return int(array.reshape(())) if np.prod(array.shape) == 1 else contents.put("mask", array)


def _int(x: Any) -> int | None:
    return None if x is None else int(x)


def _compact(x: Array) -> Array:
    """The array without what broadcasting added."""
    strides = x.stride() if is_torch(x) else x.strides
    return x[tuple(slice(None) if stride else slice(0, 1) for stride in strides)]
