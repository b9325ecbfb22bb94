"""The recurrent encoder-decoder: one fixed summary, or attention at every step.

With a fixed summary all that the decoder knows of the source is one vector (Cho et al. 2014, arXiv
1406.1078; Sutskever et al. 2014, arXiv 1409.3215). With attention it asks all states of the encoder
anew at every step (Bahdanau et al. 2014, arXiv 1409.0473).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regard._errors import OptionError, ShapeError
from regard.nn._checks import check_batch, check_dropout, real_lengths
from regard.nn._drop import dropout
from regard.nn.additive import AdditiveAttention
from regard.nn.multiplicative import MultiplicativeAttention
from regard.nn.recurrent_cell import RecurrentCache, RecurrentCell

KINDS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentEncoder(nn.Module):
    """A bidirectional GRU or LSTM.

    Args:
        input_size: of the vectors that are read.
        size: of each direction's states.
        layers: how many, the upper ones of which read the states of both directions.
        cell: "gru" (Cho et al. 2014) or "lstm" (Hochreiter and Schmidhuber 1997).
        dropout: the chance of a number to be dropped between layers in training.

    Raises:
        OptionError: another cell, or a dropout outside its range.
    """

    def __init__(
        self,
        input_size: int,
        size: int,
        *,
        layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.rnn = _stacked(cell, input_size, size, layers, dropout, bidirectional=True)

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """The states at every position, forward and backward side by side.

        Args:
            source: (B, S, input_size).
            source_mask: (B, S), True where the source is real: some first positions of each.
                Both directions begin and end there.

        Returns:
            (B, S, 2 size), zero where the source is not real.

        Raises:
            ShapeError: sizes that do not fit, a source without a real position, or one that goes on
                after padding.
            DtypeError: a mask that is not boolean.
        """
        _check_states(source, self.input_size, "source")
        lengths = None
        if source_mask is not None:
            lengths = real_lengths(source_mask, source.shape[:-1], "source_mask", least=1)
        if lengths is None or not len(source):
            states: Tensor = self.rnn(source)[0]
            return states
        packed = pack_padded_sequence(source, lengths.cpu(), True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=source.shape[1]
        )
        return states


class RecurrentDecoder(nn.Module):
    """A GRU or LSTM that writes a text, given the states of an encoder.

    Its first state is made of the encoder's last states: of the forward half at the last position,
    of the backward half at the first. Without attention this summary also enters every step; with
    attention, the state before a step asks the encoder's states, and what it gathers enters the
    step. The output is a layer over state, summary or context, and input.

    Args:
        input_size: of the vectors that are read.
        memory_size: of the encoder's states, forward and backward.
        size: of the decoder's states, and of the output.
        attention: a module such as `AdditiveAttention(size, memory_size, ...)` or
            `MultiplicativeAttention(size, memory_size)`; None for the fixed summary.
        layers: how many. The uppermost asks; what was gathered enters the lowest.
        cell: "gru" or "lstm".
        dropout: the chance of a number to be dropped in training, between layers and of the output.

    Raises:
        OptionError: another cell, or a dropout outside its range.
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int,
        size: int,
        *,
        attention: nn.Module | None = None,
        layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        self.input_size, self.memory_size, self.size = input_size, memory_size, size
        self.layers, self.dropout = layers, dropout
        self.parts = 2 if cell == "lstm" else 1  # of a layer's state
        self.first = nn.Linear(memory_size, layers * size * self.parts)
        self.rnn, self.cell = None, None
        if attention is None:
            self.rnn = _stacked(cell, input_size + memory_size, size, layers, dropout)
        else:
            _check_cell(cell)
            self.cell = RecurrentCell(
                input_size, memory_size, size, attention, layers, cell, dropout
            )
        self.readout = nn.Linear(size + memory_size + input_size, size)

    def forward(
        self,
        target: Tensor,
        memory: Tensor,
        *,
        memory_mask: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """What stands at each position of the target, of which it has read itself and those before.

        Args:
            target: (B, T, input_size).
            memory: (B, S, memory_size), the encoder's states.
            memory_mask: (B, S), True where the source is real.
            cache: of what was read before, which takes this too. Memory and its mask are those of
                the first call with it; later calls do not read theirs.

        Returns:
            (B, T, size).

        Raises:
            ShapeError: sizes that do not fit, a memory without a real position, or one that goes on
                after padding.
            DtypeError: a mask that is not boolean.
        """
        check_batch(target, self.input_size, "target")
        if cache is None:
            cache = RecurrentCache()
        held = memory if not cache.state else cache.state[0][0]
        if len(held) != len(target):
            name = "cache" if cache.state else "memory"
            raise ShapeError(
                f"{name}: is of batch ({len(held)},); the target's is ({len(target)},)"
            )
        if not cache.state:
            self._begin(cache, memory, memory_mask)
        if not target.shape[1]:
            return target.new_empty(len(target), 0, self.size)
        states, read = self._at_once(target, cache) if self.rnn else self._by_step(target, cache)
        output = torch.tanh(self.readout(torch.cat([states, read, target], -1)))
        return dropout(output, self.dropout, self.training)

    def _begin(self, cache: RecurrentCache, memory: Tensor, mask: Tensor | None) -> None:
        _check_states(memory, self.memory_size, "memory")
        if mask is not None:
            real_lengths(mask, memory.shape[:-1], "memory_mask", least=1)
        summary = _summary(memory, mask)
        parts = torch.tanh(self.first(summary)).chunk(self.layers * self.parts, -1)
        cache.state = [parts[n : n + self.parts] for n in range(0, len(parts), self.parts)]
        if self.cell is None:
            cache.memory = summary
        else:
            cache.memory, cache.mask = memory, mask
            cache.key = self.cell.cross_attention.project(memory)

    def _at_once(self, target: Tensor, cache: RecurrentCache) -> tuple[Tensor, Tensor]:
        """The states (B, T, size) of a fixed summary, and the summary at each of them."""
        assert self.rnn is not None
        assert cache.memory is not None
        read = cache.memory[:, None].expand(-1, target.shape[1], -1)
        stacked = [torch.stack(part) for part in zip(*cache.state, strict=True)]
        given = stacked[0] if self.parts == 1 else tuple(stacked)
        states, last = self.rnn(torch.cat([target, read], -1), given)
        kept = (last,) if self.parts == 1 else last
        cache.state = list(zip(*(part.unbind() for part in kept), strict=True))
        cache.length += target.shape[1]
        return states, read

    def _by_step(self, target: Tensor, cache: RecurrentCache) -> tuple[Tensor, Tensor]:
        """The states (B, T, size), and the contexts (B, T, memory_size) that entered them."""
        assert self.cell is not None
        states, contexts, state = [], [], cache.state
        for position, x in enumerate(target.unbind(1), cache.length):
            context, state = self.cell(x, state, cache, position)
            contexts.append(context)
            states.append(state[-1][0])
        cache.state = state
        cache.length += target.shape[1]
        return torch.stack(states, 1), torch.stack(contexts, 1)


class Recurrent(nn.Module):
    """Recurrent encoder and decoder, from vectors to vectors, with the methods of `Transformer`.

        model = Recurrent(256)                            # Bahdanau's: additive attention
        model = Recurrent(256, attention=None)            # one fixed summary
        y = model(source, target, source_mask)            # (B, T, 256), all positions

        memory, cache = model.encode(source, source_mask), model.new_cache()
        y = model.decode(first, memory, memory_mask=source_mask, cache=cache)  # token by token

    Embeddings and the output layer are the user's.

    Args:
        size: of the vectors that are read and put out.
        attention: "additive" (Bahdanau et al. 2014), "multiplicative" (Luong et al. 2015,
            "general"), or None: the fixed summary.
        hidden: of the states of the decoder and of each of the encoder's directions; size unless
            given.
        encoder_layers, decoder_layers: how many.
        cell: "gru" or "lstm".
        dropout: the chance of a number to be dropped in training, between layers and of the output.

    Raises:
        OptionError: another attention or cell, or a dropout outside its range.
    """

    def __init__(
        self,
        size: int,
        *,
        attention: str | None = "additive",
        hidden: int | None = None,
        encoder_layers: int = 1,
        decoder_layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        hidden = size if hidden is None else hidden
        self.encoder = RecurrentEncoder(
            size, hidden, layers=encoder_layers, cell=cell, dropout=dropout
        )
        self.decoder = RecurrentDecoder(
            size,
            2 * hidden,
            hidden,
            attention=_attention(attention, hidden),
            layers=decoder_layers,
            cell=cell,
            dropout=dropout,
        )
        self.output = nn.Identity() if hidden == size else nn.Linear(hidden, size)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """The memory (B, S, 2 hidden) of a source (B, S, size), as `RecurrentEncoder.forward`."""
        memory: Tensor = self.encoder(source, source_mask)
        return memory

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        *,
        memory_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """(B, T, size), of the target (B, T, size), as `RecurrentDecoder.forward`.

        Args:
            target_mask: (B, T), True where the target is real: some first positions. What comes
                after them changes nothing before. With a cache of P positions, (B, P + T).

        Raises:
            ShapeError: sizes that do not fit, or a target that goes on after padding.
            DtypeError: a mask that is not boolean.
        """
        check_batch(target, self.decoder.input_size, "target")
        if target_mask is not None:
            length = target.shape[1] + (0 if cache is None else len(cache))
            real_lengths(target_mask, (len(target), length), "target_mask", least=0)
        found: Tensor = self.output(
            self.decoder(target, memory, memory_mask=memory_mask, cache=cache)
        )
        return found

    def new_cache(self) -> RecurrentCache:
        """An empty cache, for `decode` to go on with from call to call."""
        return RecurrentCache()

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, size), of source (B, S, size) and target (B, T, size), real where masks are True.

        Raises:
            ShapeError, DtypeError: as `encode` and `decode`.
        """
        memory = self.encode(source, source_mask)
        return self.decode(target, memory, memory_mask=source_mask, target_mask=target_mask)


def _attention(name: str | None, hidden: int) -> nn.Module | None:
    if name is None:
        return None
    if name == "additive":
        return AdditiveAttention(hidden, 2 * hidden, hidden)
    if name == "multiplicative":
        return MultiplicativeAttention(hidden, 2 * hidden)
    raise OptionError(f'attention: got {name!r}; needs "additive", "multiplicative" or None')


def _stacked(
    cell: str, input_size: int, size: int, layers: int, dropout: float, **options: bool
) -> Any:
    """PyTorch's own; it warns of a dropout between layers where there is one layer."""
    _check_cell(cell)
    check_dropout(dropout)
    between = dropout if layers > 1 else 0.0
    return KINDS[cell](input_size, size, layers, batch_first=True, dropout=between, **options)


def _check_cell(cell: str) -> None:
    if cell not in KINDS:
        raise OptionError(f"cell: got {cell!r}; needs one of {', '.join(KINDS)}")


def _check_states(x: Tensor, size: int, name: str) -> None:
    """Raises ShapeError: x is not (B, S, size) with one position or more."""
    check_batch(x, size, name)
    if not x.shape[1]:
        raise ShapeError(f"{name}: got no position, shape {tuple(x.shape)}; needs one or more")


def _summary(memory: Tensor, mask: Tensor | None) -> Tensor:
    """The states (B, memory_size) of both directions where each has read the whole source."""
    half = memory.shape[-1] // 2
    if mask is None:
        last = memory[:, -1, :half]
    else:
        rows = torch.arange(len(memory), device=memory.device)
        last = memory[rows, mask.sum(-1) - 1, :half]
    return torch.cat([last, memory[:, 0, half:]], -1)
