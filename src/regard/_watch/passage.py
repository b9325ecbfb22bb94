"""One forward pass of a model or of a model within it: what it was called with, and where it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from regard.nn._reading import Reader

CACHES = ("past_key_values", "cache")  # transformers' names of it, until 5.23 and from 5.24 on


@dataclass(frozen=True, eq=False)
class Passage:
    """A forward pass under way.

    Attributes:
        host: the name of the module whose pass it is.
        shape: (batch, L) of what it reads; None where that is no sequence of tokens.
        ids: (batch, L), its tokens, if it was given any.
        attention_mask: (batch, positions), True or 1 where a position is no padding.
        start: the position of the first token, which a filled cache moves.
        source: how many positions of an encoder it may attend to; None where there is no encoder.
        targets: (batch, T), the tokens of a decoder, where a model of no known kind was given them
            beside those of its encoder.
        within: the pass of that model, where this one is of such a decoder.
        moves: how often the entries of its cache changed places, as beam search has them do.
    """

    host: str
    shape: tuple[int, int] | None
    ids: Tensor | None
    attention_mask: Tensor | None
    start: int
    source: int | None
    targets: Tensor | None = None
    within: "Passage | None" = None
    moves: int = 0

    @cached_property  # every layer asks
    def real(self) -> Tensor | None:
        """(batch, L), True where a query is no padding; None where all are."""
        mask = self.attention_mask
        if mask is None or self.shape is None:
            return None
        real = mask[:, -self.shape[1] :].bool()
        return None if tuple(real.shape) != self.shape or bool(real.all()) else real

    @property
    def sequence(self) -> str:
        """What its positions are: "input", "decoder", or "other", which has no tokens."""
        if self.shape is None:
            return "other"
        return "input" if self.source is None else "decoder"


def passage_of(host: str, module: Any, given: Mapping[str, Any], outer: Passage | None) -> Passage:
    """What the arguments of a forward pass tell.

    Args:
        host: the name of the module.
        module: whose pass it is; one of regard.nn tells itself what it reads.
        given: its arguments by name.
        outer: the pass within which it runs.
    """
    if isinstance(module, Reader):
        return _passage_within(host, module, given, outer)
    ids, embeds, targets = given.get("input_ids"), given.get("inputs_embeds"), None
    if ids is None and embeds is None and outer is None:
        ids, targets, *_ = [*filter(_are_tokens, given.values()), None, None]
    caches = [given[name] for name in CACHES if hasattr(given.get(name), "get_seq_length")]
    if ids is None and embeds is None and outer is None and caches:
        embeds = next(filter(_are_vectors, given.values()), None)  # what goes on reads a sequence
    read = ids if ids is not None else embeds
    shape = None if read is None else tuple(read.shape[:2])
    mask: Any = given.get("attention_mask")
    mask = mask if getattr(mask, "ndim", 0) == 2 else None
    if outer is not None and shape is not None and outer.shape == shape:
        # The model around it may have turned tokens into vectors, and the mask into another.
        ids = outer.ids if ids is None else ids
        mask = outer.attention_mask if mask is None else mask
    start = int(caches[0].get_seq_length()) if caches else 0
    moves = int(getattr(caches[0], "moves", 0)) if caches else 0
    encoded: Any = given.get("encoder_hidden_states")
    source = None if encoded is None else int(encoded.shape[1])
    return Passage(host, shape, ids, mask, start, source, targets, moves=moves)


def _passage_within(
    host: str, module: Reader, given: Mapping[str, Any], outer: Passage | None
) -> Passage:
    """The passage of a module that reads vectors, whose tokens the model around it was given."""
    told = module.reading(given)
    tokens, within = None, None
    if outer is not None:
        within = None if told.source is None or outer.targets is None else outer
        tokens = outer.ids if told.source is None else outer.targets
        if tokens is not None:
            stop = told.start + told.shape[1]
            tokens = tokens[:, told.start : stop] if tokens.shape[1] >= stop else None
    if tokens is not None and tuple(tokens.shape) != told.shape:
        tokens = None
    return Passage(
        host,
        told.shape,
        tokens,
        told.real,
        told.start,
        told.source,
        within=within,
        moves=told.moves,
    )


def _are_vectors(x: Any) -> bool:
    """Whether an argument is (batch, L, size)."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3


def _are_tokens(x: Any) -> bool:
    """Whether an argument of a model that is none of transformers' can only be tokens."""
    whole = isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex())
    return whole and x.ndim == 2 and x.dtype.itemsize >= 4
