"""The masks of transformers as masks of regard, and the tensor that carries them through a model.

transformers describes a mask as a function of batch entry, head, query and key position, which its
own back ends expand to (batch, 1, L, S). The stock functions are recognised by identity (a closure
by the code that made it) and stay descriptions; any other function is evaluated, some rows at a
time, when attention asks for it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch.utils._pytree import tree_map
from transformers import masking_utils as stock

from regard._masks import Mask, causal, dense, documents, lengths, padding, window
from regard._watch.joined import all_of

MaskFunction = Callable[..., Any]
# Of an unknown function at once: its intermediate results take 8 bytes per query and key.
ROWS = 256


class CarriedMask(torch.Tensor):
    """A mask of scores (batch, 1, L, S) that takes no memory while a model only passes it on.

    It has the shape, dtype and device of the mask that transformers makes for eager attention, 0
    where a query may attend and the dtype's least number elsewhere: any model may meet that one,
    while some add what they get to scores (GIT's text), or join it to scores (DeepSeek V4), and
    come to something else with booleans. The first operation on it that computes makes it that mask
    for good, so that changes in place are kept.

    Attributes:
        q_offset: the position of query 0 among all tokens, those in the cache included.
        kv_offset: that of key 0; more than 0 where a cache has dropped the first keys.
    """

    q_offset: int
    kv_offset: int
    _structure: Mask | None
    _known: bool
    _visible: Callable[[], torch.Tensor]
    _full: torch.Tensor | None

    @staticmethod
    def __new__(
        cls, frame: "_Frame", visible: Callable[[], torch.Tensor], dtype: torch.dtype
    ) -> "CarriedMask":
        make: Any = torch.Tensor._make_wrapper_subclass
        shape = (frame.batch, 1, frame.L, frame.S)
        carried: CarriedMask = make(cls, shape, dtype=dtype, device=frame.device)
        carried.q_offset, carried.kv_offset = frame.q_offset, frame.kv_offset
        carried._structure, carried._known = None, False
        carried._visible, carried._full = visible, None
        return carried

    def known(self, structure: Mask | None) -> "CarriedMask":
        """The same, with a description; None where every query may see every key."""
        self._structure, self._known = structure, True
        return self

    def parts(self) -> tuple[Mask | None, torch.Tensor | None]:
        """What attention needs: a mask, and scores to add."""
        if self._full is not None:
            return None, self._full
        if not self._known:
            self.known(dense(self._visible()))
        return self._structure, None

    def full(self) -> torch.Tensor:
        """The full mask of scores."""
        if self._full is None:
            nothing = torch.zeros((), dtype=self.dtype, device=self.device)
            self._full = torch.where(self._visible(), nothing, torch.finfo(self.dtype).min)
        return self._full

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        held = "scores" if self._full is not None else self._structure if self._known else "unread"
        return f"CarriedMask({held}, shape={tuple(self.shape)})"

    # Whatever computes ends in __torch_dispatch__, but for the two ways out of torch below.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def full(x: Any) -> Any:
            return x.full() if isinstance(x, CarriedMask) else x

        return func(*tree_map(full, args), **tree_map(full, kwargs or {}))

    def numpy(self, *, force: bool = False) -> Any:
        return self.full().numpy(force=force)

    def tolist(self) -> Any:
        return self.full().tolist()


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = stock.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    device: Any = "cpu",
    **hints: Any,
) -> CarriedMask:
    """The mask function that transformers calls for models whose attention is "regard".

    The hints say when another back end may leave the mask out; here it is always given, since a
    mask that is None means causal to some models and full attention to others.
    """
    frame = _Frame(batch_size, q_length, kv_length, int(q_offset), int(kv_offset), device)

    def visible() -> torch.Tensor:
        found = torch.empty(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
        for start in range(0, q_length, ROWS):
            rows = found[:, :, start : start + ROWS]
            made: Any = stock.sdpa_mask(
                batch_size,
                rows.shape[2],
                kv_length,
                q_offset=frame.q_offset + start,
                kv_offset=frame.kv_offset,
                mask_function=mask_function,
                attention_mask=attention_mask,
                allow_is_causal_skip=False,
                allow_is_bidirectional_skip=False,
                use_vmap=use_vmap,
                device=device,
            )
            rows.copy_(made)
        return found

    carried = CarriedMask(frame, visible, dtype)
    try:
        structure = translate(mask_function, frame)
        real = None if attention_mask is None else frame.real_keys(attention_mask)
    except UnknownMaskError:
        return carried
    return carried.known(all_of([structure, None if real is None else padding(real)]))


class UnknownMaskError(Exception):
    """A mask function that is none of transformers' own; it never leaves this module."""


@dataclass(frozen=True)
class _Frame:
    """Which rows and columns of a token-by-token matrix a mask covers."""

    batch: int
    L: int
    S: int
    q_offset: int
    kv_offset: int
    device: Any

    @property
    def shift(self) -> int:
        """Query i stands at the position of key i + shift."""
        return self.q_offset - self.kv_offset

    def of_queries(self, per_token: torch.Tensor) -> torch.Tensor:
        return per_token[: self.batch, self.q_offset : self.q_offset + self.L]

    def of_keys(self, per_token: torch.Tensor) -> torch.Tensor:
        return per_token[: self.batch, self.kv_offset : self.kv_offset + self.S]

    def positions(self) -> torch.Tensor:
        """(1, positions): of every token up to the last query or key."""
        stop = max(self.q_offset + self.L, self.kv_offset + self.S)
        return torch.arange(stop, device=self.device)[None]

    def real_keys(self, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """(batch, S), True where a key is real; None where all are."""
        if attention_mask.ndim != 2:
            raise UnknownMaskError
        padded: Any = stock.prepare_padding_mask(attention_mask, self.S, self.kv_offset)
        real = self.of_keys(padded.bool())
        return None if bool(real.all()) else real


def translate(function: MaskFunction, frame: _Frame) -> Mask | None:
    """The mask that a mask function of transformers describes; None where all is visible.

    Raises:
        UnknownMaskError: the function, or one that it is made of, is none of transformers' own.
    """
    reader = _READERS.get(_code(function))
    if reader is None:
        raise UnknownMaskError
    try:
        return reader(inspect.getclosurevars(function).nonlocals, frame)
    except KeyError:  # another version of transformers names the closure's variables differently
        raise UnknownMaskError from None


def _code(function: MaskFunction) -> Any:
    return getattr(function, "__code__", None)


def _causal(_: Any, frame: _Frame) -> Mask | None:
    """None in a decoding step, whose one query sees every key: that saves each layer a mask."""
    return None if frame.shift >= frame.S - 1 else causal(frame.shift)


def _everything(_: Any, frame: _Frame) -> None:
    return None


def _sliding(given: Any, frame: _Frame) -> Mask | None:
    size = given["sliding_window"]
    if size <= 0:  # of models that hold a mask for each kind, used or not
        return lengths(0)
    return None if frame.shift + frame.L <= size else window(size - 1, None, frame.shift)


def _sliding_both_ways(given: Any, frame: _Frame) -> Mask:
    return window(given["sliding_window"], given["sliding_window"], frame.shift)


def _chunked(given: Any, frame: _Frame) -> Mask:
    since_start = frame.positions() - given["left_padding"][:, None]
    chunk = since_start // given["chunk_size"]
    return documents(frame.of_queries(chunk), frame.of_keys(chunk))


def _blockwise(given: Any, frame: _Frame) -> Mask:
    block = given["block_sequence_ids"]
    of_queries, of_keys = frame.of_queries(block), frame.of_keys(block)
    # -1 is outside of every block: give it another number on each side.
    return documents(of_queries.where(of_queries >= 0, -1), of_keys.where(of_keys >= 0, -2))


def _padding(given: Any, frame: _Frame) -> Mask:
    return padding(frame.of_keys(given["padding_mask"].bool()))


def _packed(given: Any, frame: _Frame) -> Mask:
    sequence = given["packed_sequence_mask"]
    return documents(frame.of_queries(sequence), frame.of_keys(sequence))


def _and(given: Any, frame: _Frame) -> Mask | None:
    parts = [_without_remapping(part, given["mask_functions"]) for part in given["mask_functions"]]
    return all_of([translate(part, frame) for part in parts])


def _or(given: Any, frame: _Frame) -> Mask | None:
    masks = [translate(part, frame) for part in given["mask_functions"]]
    some = [m for m in masks if m is not None]
    return reduce(or_, some) if len(some) == len(masks) else None


def _without_remapping(part: MaskFunction, beside: Sequence[MaskFunction]) -> MaskFunction:
    """A function of positions within each packed sequence as a function of positions in the row.

    Where it stands beside the mask that keeps the sequences apart, and positions count up by one
    within each of them, functions of the distance alone mean the same either way.
    """
    if _code(part) is not _REMAPPED:
        return part
    given = inspect.getclosurevars(part).nonlocals
    packed = [p for p in beside if _code(p) is _PACKED]
    if not packed or not _by_distance_alone(given["mask_function"]):
        raise UnknownMaskError
    sequence = inspect.getclosurevars(packed[0]).nonlocals["packed_sequence_mask"]
    step, same = given["position_ids"].diff(dim=-1), sequence.diff(dim=-1)
    if bool((same < 0).any()) or bool((step[same == 0] != 1).any()):
        raise UnknownMaskError
    inner: MaskFunction = given["mask_function"]
    return inner


def _by_distance_alone(function: MaskFunction) -> bool:
    if _code(function) is _AND:
        parts = inspect.getclosurevars(function).nonlocals["mask_functions"]
        return all(map(_by_distance_alone, parts))
    return _code(function) in _DISTANCES


_NO_TENSOR: Any = None  # the factories below only close over what they are given
_AND = stock.and_masks().__code__
_PACKED = stock.packed_sequence_mask_function(_NO_TENSOR).__code__
_REMAPPED = stock.remap_positions_for_packed_sequence(
    stock.causal_mask_function, _NO_TENSOR
).__code__
_DISTANCES: dict[Any, Callable[[Any, _Frame], Mask | None]] = {
    stock.causal_mask_function.__code__: _causal,
    stock.bidirectional_mask_function.__code__: _everything,
    stock.sliding_window_overlay(1).__code__: _sliding,
    stock.sliding_window_bidirectional_overlay(1).__code__: _sliding_both_ways,
}
_READERS: dict[Any, Callable[[Any, _Frame], Mask | None]] = _DISTANCES | {
    _AND: _and,
    stock.or_masks().__code__: _or,
    _PACKED: _packed,
    stock.chunked_overlay(1, _NO_TENSOR).__code__: _chunked,
    stock.blockwise_overlay(_NO_TENSOR).__code__: _blockwise,
    stock.padding_mask_function(_NO_TENSOR).__code__: _padding,
}
