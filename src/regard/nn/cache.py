"""Keys and values of what was read before, kept while a text is written token by token."""

import torch
from torch import Tensor


class KeyValueCache:
    """The keys and values of one attention; empty at first.

    Attributes:
        key: (*batch, kv_heads, S, d_k), or None while it is empty.
        value: (*batch, kv_heads, S, d_v), likewise.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.key is None else self.key.shape[-2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last.

        They are written anew with every step. A step reads all of them anyway, and so gradients
        flow, and a trace may hold on to what it saw.
        """
        if self.key is not None and self.value is not None:
            key = torch.cat([self.key, key], -2)
            value = torch.cat([self.value, value], -2)
        self.key, self.value = key, value
        return key, value

    def reorder(self, indices: Tensor) -> None:
        """Puts entry `indices[i]` of the first dimension in place i, as beam search does."""
        if self.key is not None and self.value is not None:
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
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.memory_mask: Tensor | None = None

    def __len__(self) -> int:
        """How many positions of the target were read."""
        return len(self.layers[0].own) if self.layers else 0

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
