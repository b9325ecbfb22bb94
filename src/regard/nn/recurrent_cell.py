"""One step of a recurrent decoder with attention, and what is kept from step to step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard.nn._drop import dropout
from regard.nn._reading import Reader, Reading
from regard.nn.cache import move

State = list[tuple[Tensor, ...]]  # of each layer (h,) of a GRU, (h, c) of an LSTM: (B, size) each


class RecurrentCache:
    """What a recurrent decoder has read; empty at first.

    Attributes:
        length: how many positions of the target were read.
        state: of each layer (h,) of a GRU, or (h, c) of an LSTM, (B, size) each.
        memory: what is read at every step: the summary (B, memory_size), or the encoder's states
            (B, S, memory_size).
        mask: (B, S), True where the source is real; None where all of it is.
        key: what the attention made of the encoder's states; None where there is no attention.
        moves: how often entries changed places, which `regard.watch` asks for.
    """

    def __init__(self) -> None:
        self.length, self.moves = 0, 0
        self.state: State = []
        self.memory: Tensor | None = None
        self.mask: Tensor | None = None
        self.key: Tensor | None = None

    def __len__(self) -> int:
        return self.length

    def reorder(self, indices: Tensor, *, memory: bool = True) -> None:
        """Puts entry `indices[i]` of the batch in place i, as beam search does.

        Args:
            indices: (new batch,), integers; entries may be repeated or left out.
            memory: whether entries may change to another source. Where beams only change places
                with others of the same source, False leaves what belongs to the source as it is.
        """
        if self.state:
            self.moves += move(indices, len(self.state[0][0]))
        self.state = [tuple(x.index_select(0, indices) for x in layer) for layer in self.state]
        if memory:
            for name in ("memory", "mask", "key"):
                if (x := getattr(self, name)) is not None:
                    setattr(self, name, x.index_select(0, indices))


class RecurrentCell(Reader):
    """Asks with the state before, gathers a context, and steps with input and context.

    Args:
        input_size, memory_size, size, attention, layers, cell, dropout: as `RecurrentDecoder`.
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int,
        size: int,
        attention: nn.Module,
        layers: int,
        cell: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.cross_attention: Any = attention
        self.dropout = dropout
        self.is_lstm = cell == "lstm"
        kind: Any = nn.LSTMCell if self.is_lstm else nn.GRUCell
        self.layers = nn.ModuleList(
            kind(size if n else input_size + memory_size, size) for n in range(layers)
        )

    def forward(
        self,
        x: Tensor,
        state: State,
        cache: RecurrentCache,
        start: int,
    ) -> tuple[Tensor, State]:
        """The context (B, memory_size) and the state after the step.

        Args:
            x: (B, input_size).
            state: before the step.
            cache: whose memory, mask and key are asked.
            start: the position of x, which `regard.watch` asks for.
        """
        query = state[-1][0].unsqueeze(1)
        gathered = self.cross_attention(
            query, cache.key, cache.memory, mask=cache.mask, projected=True
        )
        context = gathered.squeeze(1)
        x = torch.cat([x, context], -1)
        after: State = []
        for layer, before in zip(self.layers, state, strict=True):
            if after:
                x = dropout(x, self.dropout, self.training)
            after.append(layer(x, before) if self.is_lstm else (layer(x, before[0]),))
            x = after[-1][0]
        return context, after

    def reading(self, given: Mapping[str, Any]) -> Reading:
        cache = given["cache"]
        source, moves = cache.memory.shape[1], cache.moves
        return Reading((len(given["x"]), 1), given["start"], source=source, moves=moves)
