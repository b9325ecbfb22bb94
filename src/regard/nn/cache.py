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
