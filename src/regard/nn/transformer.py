"""The Transformer (Vaswani et al. 2017): encoder, decoder and both, from vectors to vectors.

Embeddings, positions and the output layer are the user's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import OptionError, ShapeError
from regard.nn._drop import dropout
from regard.nn._reading import Reader, Reading
from regard.nn.cache import KeyValueCache
from regard.nn.multi_head import MultiHeadAttention
from regard.nn.positions import RotaryPositions

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swiglu": functional.silu,
}


class FeedForward(nn.Module):
    """Two layers at every position by itself: W_2 activation(W_1 x).

    Args:
        size: of the vectors.
        inner: of the hidden layer.
        activation: "relu", "gelu", or "swiglu": silu(W_1 x) · W_3 x in its place (Shazeer 2020).
        dropout: of the hidden layer, in training.

    Raises:
        OptionError: another activation.
    """

    def __init__(
        self, size: int, inner: int, *, activation: str = "relu", dropout: float = 0.1
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            named = ", ".join(ACTIVATIONS)
            raise OptionError(f"activation: got {activation!r}; needs one of {named}")
        self.activation, self.dropout = activation, dropout
        self.up = nn.Linear(size, inner)
        self.gate = nn.Linear(size, inner) if activation == "swiglu" else None
        self.down = nn.Linear(inner, size)
        _begin(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (*batch, size); the same shape."""
        if self.gate is None:
            hidden = ACTIVATIONS[self.activation](self.up(x))
        else:
            hidden = ACTIVATIONS[self.activation](self.gate(x)) * self.up(x)
        hidden = dropout(hidden, self.dropout, self.training)
        down: Tensor = self.down(hidden)
        return down

    def extra_repr(self) -> str:
        return self.activation


class _Layer(nn.Module):
    """What layers of encoder and decoder share: a residual stream and where it is normalised."""

    def __init__(self, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.dropout, self.pre_norm = dropout, pre_norm

    def _add(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x and what a part makes of it."""
        found = part(norm(x) if self.pre_norm else x)
        found = dropout(found, self.dropout, self.training)
        added: Tensor = x + found if self.pre_norm else norm(x + found)
        return added


class EncoderLayer(_Layer):
    """Self-attention, then a feed-forward network, each added to the vectors it reads.

    Args:
        size: of the vectors.
        heads: of the attention.
        inner: of the feed-forward network's hidden layer.
        dropout: the chance of a number or weight to be dropped in training.
        pre_norm: whether each part reads normalised vectors (Xiong et al. 2020), or its sum is
            normalised (Vaswani et al. 2017).
        activation: as `FeedForward`.
        kv_heads, rotary: as `MultiHeadAttention`.

    Raises:
        OptionError: as those two.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        inner: int,
        *,
        dropout: float = 0.1,
        pre_norm: bool = True,
        activation: str = "relu",
        kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
    ) -> None:
        super().__init__(dropout, pre_norm)
        self.self_attention = MultiHeadAttention(
            size, heads, kv_heads=kv_heads, dropout=dropout, rotary=rotary
        )
        self.feed_forward = FeedForward(size, inner, activation=activation, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, size), of which mask (B, S) says which are real; the same shape."""
        attend = self.self_attention
        x = self._add(x, self.norms[0], lambda x: attend(x, padding=mask))
        return self._add(x, self.norms[1], self.feed_forward)


class LayerCache:
    """What one layer of a decoder has read: `own` of the target, `memory` of the encoder."""

    def __init__(self) -> None:
        self.own, self.memory = KeyValueCache(), KeyValueCache()


class DecoderLayer(_Layer):
    """Causal self-attention, attention to the encoder's output, and a feed-forward network.

    Arguments and errors are those of `EncoderLayer`; `rotary` turns in self-attention alone.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        inner: int,
        *,
        dropout: float = 0.1,
        pre_norm: bool = True,
        activation: str = "relu",
        kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
    ) -> None:
        super().__init__(dropout, pre_norm)
        self.self_attention = MultiHeadAttention(
            size, heads, kv_heads=kv_heads, dropout=dropout, rotary=rotary
        )
        self.cross_attention = MultiHeadAttention(size, heads, kv_heads=kv_heads, dropout=dropout)
        self.feed_forward = FeedForward(size, inner, activation=activation, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        memory_mask: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, size) and memory (B, S, size), with masks (B, T) and (B, S); x's shape.

        With a cache, x goes on after what was read before; then `mask` is of all of it.
        """
        own = None if cache is None else cache.own
        x = self._add(
            x,
            self.norms[0],
            lambda x: self.self_attention(x, padding=mask, causal=True, cache=own),
        )
        key, value = self._of_memory(memory, cache)
        x = self._add(
            x,
            self.norms[1],
            lambda x: self.cross_attention(x, key, value, padding=memory_mask, projected=True),
        )
        return self._add(x, self.norms[2], self.feed_forward)

    def _of_memory(self, memory: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """The memory's keys and values, projected once for all steps with one cache."""
        if cache is None:
            return self.cross_attention.project(memory)
        held = cache.memory
        if held.key is not None and held.value is not None:
            return held.key, held.value
        return held.append(*self.cross_attention.project(memory))


class DecoderCache:
    """What a decoder has read, layer by layer.

    Attributes:
        layers: one `LayerCache` each.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]

    def __len__(self) -> int:
        """How many positions of the target were read."""
        return len(self.layers[0].own) if self.layers else 0

    def reorder(self, indices: Tensor, *, memory: bool = True) -> None:
        """Puts entry `indices[i]` of the batch in place i, as beam search does.

        Args:
            indices: (new batch,), integers; entries may be repeated or left out.
            memory: whether entries may change to another source. Where beams only change places
                with others of the same source, False leaves the memory's keys and values as they
                are, which saves most of the time.
        """
        for layer in self.layers:
            layer.own.reorder(indices)
            if memory:
                layer.memory.reorder(indices)


class TransformerEncoder(Reader):
    """Layers of self-attention over a whole text.

    Args:
        size, heads, inner, options: as `EncoderLayer`.
        layers: how many.

    With pre_norm the result is normalised.
    """

    def __init__(self, size: int, heads: int, layers: int, inner: int, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(size, heads, inner, **options) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size) if options.get("pre_norm", True) else None

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """source (B, S, size), and booleans (B, S), True where it is real; the same shape.

        Raises:
            ShapeError: sizes that do not fit.
        """
        _check_mask(source_mask, source.shape[:-1], "source_mask")
        for layer in self.layers:
            source = layer(source, source_mask)
        return source if self.norm is None else self.norm(source)

    def reading(self, given: Mapping[str, Any]) -> Reading:
        source = given["source"]
        return Reading(tuple(source.shape[:2]), real=given.get("source_mask"))


class TransformerDecoder(Reader):
    """Layers of causal self-attention over what was written, and attention to the encoder's output.

    Arguments are those of `TransformerEncoder`.
    """

    def __init__(self, size: int, heads: int, layers: int, inner: int, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(size, heads, inner, **options) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size) if options.get("pre_norm", True) else None

    def forward(
        self,
        target: Tensor,
        memory: Tensor,
        *,
        memory_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """What stands at each position of the target, of which it sees itself and those before.

        Args:
            target: (B, T, size).
            memory: (B, S, size), the encoder's output. With a cache only the first call reads it.
            memory_mask: (B, S), True where the source is real.
            target_mask: (B, T), True where the target is real; with a cache of P positions,
                (B, P + T). Where padding comes last, nothing real sees it anyway.
            cache: of what was read before, which takes this too.

        Returns:
            (B, T, size).

        Raises:
            ShapeError: sizes that do not fit.
        """
        past = 0 if cache is None else len(cache)
        batch, T = target.shape[:-2], target.shape[-2]
        _check_mask(target_mask, (*batch, past + T), "target_mask")
        _check_mask(memory_mask, memory.shape[:-1], "memory_mask")
        held = [None] * len(self.layers) if cache is None else cache.layers
        for layer, one in zip(self.layers, held, strict=True):
            target = layer(target, memory, memory_mask=memory_mask, mask=target_mask, cache=one)
        return target if self.norm is None else self.norm(target)

    def reading(self, given: Mapping[str, Any]) -> Reading:
        target, cache, real = given["target"], given.get("cache"), given.get("target_mask")
        start = 0 if cache is None else len(cache)
        real = None if real is None else real[:, start:]
        return Reading(tuple(target.shape[:2]), start, real, source=given["memory"].shape[1])


class Transformer(nn.Module):
    """Encoder and decoder (Vaswani et al. 2017), from vectors to vectors.

        model = Transformer(256, 4, 3, 3, 1024)
        y = model(source, target, source_mask)            # (B, T, 256), all positions at once

        memory, cache = model.encode(source, source_mask), model.new_cache()
        y = model.decode(first, memory, memory_mask=source_mask, cache=cache)  # token by token

    Args:
        size: of the vectors.
        heads: of each attention.
        encoder_layers, decoder_layers: how many.
        inner: of the feed-forward networks' hidden layers.
        dropout: the chance of a number or weight to be dropped in training: of every part's
            result, of the hidden layers and of the weights.
        pre_norm: whether each part reads normalised vectors, and the results of encoder and decoder
            are normalised (Xiong et al. 2020); or each sum is normalised, as in the paper.
        activation: "relu", "gelu" or "swiglu".
        kv_heads: of keys and values; as many as heads unless given.
        rotary: turns queries and keys of self-attention by their position.

    Raises:
        OptionError: numbers that do not fit each other, or another activation.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        inner: int,
        *,
        dropout: float = 0.1,
        pre_norm: bool = True,
        activation: str = "relu",
        kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
    ) -> None:
        super().__init__()
        options = {
            "dropout": dropout,
            "pre_norm": pre_norm,
            "activation": activation,
            "kv_heads": kv_heads,
            "rotary": rotary,
        }
        self.encoder = TransformerEncoder(size, heads, encoder_layers, inner, **options)
        self.decoder = TransformerDecoder(size, heads, decoder_layers, inner, **options)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """The memory (B, S, size) of a source (B, S, size); source_mask (B, S) is True where real.

        Raises:
            ShapeError: sizes that do not fit.
        """
        memory: Tensor = self.encoder(source, source_mask)
        return memory

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        *,
        memory_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """(B, T, size), of the target (B, T, size); as `TransformerDecoder.forward`."""
        found: Tensor = self.decoder(
            target, memory, memory_mask=memory_mask, target_mask=target_mask, cache=cache
        )
        return found

    def new_cache(self) -> DecoderCache:
        """An empty cache, for `decode` to go on with from call to call."""
        return DecoderCache(len(self.decoder.layers))

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, size), of source (B, S, size) and target (B, T, size), real where masks are True.

        Raises:
            ShapeError: sizes that do not fit.
        """
        memory = self.encode(source, source_mask)
        return self.decode(target, memory, memory_mask=source_mask, target_mask=target_mask)


def _begin(module: nn.Module) -> None:
    """Glorot uniform weights, and biases of zero."""
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)


def _check_mask(mask: Tensor | None, shape: Any, name: str) -> None:
    if mask is not None and mask.shape != torch.Size(shape):
        raise ShapeError(f"{name}: got shape {tuple(mask.shape)}; needs {tuple(shape)}")
