"""Keys and values of what was read before, kept while a text is written token by token."""

import torch
from torch import Tensor

from regard._errors import ShapeError


class KeyValueCache:
    """The keys and values of one attention; empty at first.

    Attributes:
        key: (*batch, kv_heads, S, d_k), or None while it is empty.
        value: (*batch, kv_heads, S, d_v), likewise.
        moves: how often entries changed places, which `regard.watch` asks for.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.moves = 0

    def __len__(self) -> int:
        return 0 if self.key is None else self.key.shape[-2]

    def joined(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last. They are not kept: a step that fails later on
        leaves the cache as it was.

        They are written anew with every step. A step reads all of them anyway, and so gradients
        flow, and a trace may hold on to what it saw.

        Raises:
            ShapeError: the new ones are of another batch, or of other heads.
        """
        if self.key is None or self.value is None:
            return key, value
        pairs = []
        for name, held, new in (("keys", self.key, key), ("values", self.value, value)):
            if held.shape[:-2] != new.shape[:-2] or held.shape[-1] != new.shape[-1]:
                raise ShapeError(
                    f"cache: holds {name} of shape {tuple(held.shape)}; those of this call have "
                    f"{tuple(new.shape)}"
                )
            pairs.append(torch.cat([held, new], -2))
        return pairs[0], pairs[1]

    def reorder(self, indices: Tensor) -> None:
        """Puts entry `indices[i]` of the first dimension in place i, as beam search does."""
        if self.key is not None and self.value is not None:
            self.moves += move(indices, len(self.key))
            self.key = self.key.index_select(0, indices)
            self.value = self.value.index_select(0, indices)

    def get_seq_length(self) -> int:
        """`len`, by the name that transformers has for it; `regard.watch` asks for it."""
        return len(self)


class LayerCache:
    """What one layer of a decoder has read: `own` of the target, `memory` of the encoder."""

    def __init__(self) -> None:
        self.own, self.memory = KeyValueCache(), KeyValueCache()


class DecoderCache:
    """What a decoder has read, layer by layer.

    Attributes:
        layers: one `LayerCache` each.
        memory_mask: (batch, S), True where the source is real; None where all of it is.
        moves: how often entries changed places, which `regard.watch` asks for.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.memory_mask: Tensor | None = None

    def __len__(self) -> int:
        """How many positions of the target were read."""
        return len(self.layers[0].own) if self.layers else 0

    @property
    def moves(self) -> int:
        return self.layers[0].own.moves if self.layers else 0

    def reorder(self, indices: Tensor, *, memory: bool = True) -> None:
        """Puts entry `indices[i]` of the batch in place i, as beam search does.

        Args:
            indices: (new batch,), integers; entries may be repeated or left out.
            memory: whether entries may change to another source. Where beams only change places
                with others of the same source, False leaves what belongs to the source as it is,
                which saves most of the time.
        """
        for layer in self.layers:
            layer.own.reorder(indices)
            if memory:
                layer.memory.reorder(indices)
        if memory and self.memory_mask is not None:
            self.memory_mask = self.memory_mask.index_select(0, indices)


def move(indices: Tensor, count: int) -> bool:
    """Whether some of `count` entries change places, are left out or are repeated."""
    places = torch.arange(count, dtype=indices.dtype, device=indices.device)
    return not torch.equal(indices, places)
