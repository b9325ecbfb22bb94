"""The tensors of a file: written one after another, and read where they lie.

The file is a safetensors file. Its library writes tensors that are all there at once; here each is
rounded while it is written, so that a trace needs no second copy of itself in memory.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from regard._arrays import Array, dtype_name, raw, tensor
from regard._errors import FileError, ModelError
from regard._masks import FARTHEST

NAMES = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
KINDS = {
    "numbers": ("F64", "F32", "BF16", "F16"),
    "integers": ("I64", "I32", "I16", "I8", "U8"),
    "flags": ("BOOL",),
    "bits": ("U8",),
    "any": tuple(NAMES.values()),
}
DIMENSIONS = 8  # of a tensor, at most
EMPTY = 2**20  # what the dimensions of a tensor without numbers multiply to, zeros left out
HEADER = 100_000_000  # bytes; the library reads no longer one


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A tensor that is to be written, as numbers of a dtype."""

    given: Tensor
    dtype: torch.dtype

    def bytes(self) -> memoryview:
        x = self.given.detach().to("cpu", self.dtype).resolve_neg()
        return np.ascontiguousarray(raw(x)).reshape(-1).view(np.uint8).data


class Contents:
    """Tensors on their way into a file. Those that hold the same are kept once."""

    def __init__(self) -> None:
        self._tensors: dict[str, Outgoing] = {}
        self._names: dict[Any, str] = {}

    def put(self, name: str, x: Array) -> str:
        """Takes a tensor, and says what it is called in the file: `name`, or a name with a number.

        One whose numbers are there already is called as they are.
        """
        out = _outgoing(x)
        digest = blake2b(out.bytes(), digest_size=32).digest()
        same = (digest, out.dtype, tuple(out.given.shape))
        if same not in self._names:
            numbered = (f"{name}.{n}" for n in count(2))
            self._names[same] = next(n for n in chain([name], numbered) if n not in self._tensors)
            self._tensors[self._names[same]] = out
        return self._names[same]

    def put_large(self, name: str, x: Array, dtype: torch.dtype | None) -> str:
        """As `put`, without a look at the numbers: they are rounded as they are written."""
        self._tensors[name] = _outgoing(x, dtype)
        return name

    def header(self, metadata: dict[str, str]) -> bytes:
        """The start of the file: what is in it, and where.

        Raises:
            FileError: it is longer than what can be read again.
        """
        header: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        for name, out in self._order():
            start, end = end, end + out.given.numel() * out.dtype.itemsize
            header[name] = {
                "dtype": NAMES[str(out.dtype).removeprefix("torch.")],
                "shape": list(out.given.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > HEADER - 8:
            raise FileError(f"its words and masks take {len(text):,} bytes to describe, too many")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, stream: BinaryIO) -> None:
        """The numbers, which follow the header."""
        for _, out in self._order():
            stream.write(out.bytes())

    def _order(self) -> list[tuple[str, Outgoing]]:
        """Wide numbers first: so each tensor lies at a multiple of the size of its numbers."""
        return sorted(self._tensors.items(), key=lambda item: -item[1].dtype.itemsize)


def _outgoing(x: Array, dtype: torch.dtype | None = None) -> Outgoing:
    if "uint" in (name := dtype_name(x)) and name != "uint8":  # which not all of torch knows
        x = tensor(x.to(torch.int64) if isinstance(x, Tensor) else x.astype(np.int64))
    found = tensor(x)
    return Outgoing(found, found.dtype if dtype is None else dtype)


class Opened:
    """The tensors of a file, memory-mapped: the numbers are read when they are used.

    Args:
        path: of a safetensors file.

    Raises:
        FileError: it is none, or not all of it is there.
    """

    def __init__(self, path: Path) -> None:
        try:
            import safetensors
        except ModuleNotFoundError:
            raise ModelError(
                "load: needs safetensors, which is not installed: pip install 'regard[torch]'"
            ) from None
        try:
            self._file: Any = safetensors.safe_open(str(path), "pt")
            self._names = frozenset(map(str, self._file.keys()))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise FileError(f"is no whole safetensors file ({error})") from None
        self._made: dict[Any, Tensor] = {}

    @property
    def metadata(self) -> dict[str, str]:
        """Words beside the tensors."""
        return self._file.metadata() or {}

    def get(self, name: Any, what: str, kind: str) -> Tensor:
        """A tensor of the file.

        Args:
            name: as the description gives it.
            what: it is, for errors.
            kind: of its numbers; one of `KINDS`.

        Raises:
            FileError: there is none such, or it holds something else.
        """
        if not isinstance(name, str) or name not in self._names:
            raise FileError(f"{what}: names the tensor {name!r:.99}, which is not in the file")
        found = self._file.get_slice(name)
        shape, dtype = found.get_shape(), found.get_dtype()
        if dtype not in KINDS[kind]:
            raise FileError(f"{what}: got {dtype}; needs {' or '.join(KINDS[kind])}")
        nothing = 0 in shape and math.prod(n for n in shape if n) > EMPTY
        if len(shape) > DIMENSIONS or nothing:
            raise FileError(f"{what}: got shape {tuple(shape)}, which no trace has")
        return self.once(name, lambda: self._read(name, what))

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes, which all who ask with this key share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _read(self, name: str, what: str) -> Tensor:
        try:
            x: Tensor = self._file.get_tensor(name)
        except RuntimeError as error:  # of torch, for numbers that lie across their own size
            raise FileError(f"{what}: cannot be read ({error})") from None
        if x.data_ptr() % x.dtype.itemsize:
            x = x.clone()
        if x.dtype == torch.bool and x.numel() and int(x.view(torch.uint8).max()) > 1:
            raise FileError(f"{what}: holds bytes that are neither true nor false")
        return x


# What follows reads a description: the JSON of a file, of which nothing is known.


def member(record: Any, key: str) -> Any:
    """Raises FileError unless a record has a member of this name."""
    if not isinstance(record, dict) or key not in record:
        raise FileError(f'description: needs "{key}", got {record!r:.60}')
    return record[key]


def whole(x: Any, what: str, least: int = 0) -> int:
    """Raises FileError unless x is an integer, from `least` on and no farther than positions go."""
    if not isinstance(x, int) or isinstance(x, bool) or not least <= x <= FARTHEST:
        raise FileError(f"{what}: got {x!r:.60}; needs an integer from {least} to 2**60")
    return x


def string(x: Any, what: str) -> str:
    """Raises FileError unless x is a string."""
    if not isinstance(x, str):
        raise FileError(f"{what}: got {x!r:.60}; needs a string")
    if any("\ud800" <= c <= "\udfff" for c in x):  # which JSON can spell, and no output takes
        raise FileError(f"{what}: got {x!a:.60}; needs characters of Unicode")
    return x


def flag(x: Any, what: str) -> bool:
    """Raises FileError unless x is true or false."""
    if not isinstance(x, bool):
        raise FileError(f"{what}: got {x!r:.60}; needs true or false")
    return x


def several(x: Any, what: str) -> list[Any]:
    """Raises FileError unless x is a list."""
    if not isinstance(x, list):
        raise FileError(f"{what}: got {x!r:.60}; needs a list")
    return x
