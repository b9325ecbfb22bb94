"""The Transformer (Vaswani et al. 2017): encoder, decoder and both, from vectors to vectors.

Embeddings, positions and the output layer are the user's.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regard.nn._checks import check_shape, check_size
from regard.nn._reading import Reader, Reading
from regard.nn.cache import DecoderCache
from regard.nn.positions import RotaryPositions
from regard.nn.transformer_layers import DecoderLayer, EncoderLayer


class TransformerEncoder(Reader):
    """Layers of self-attention over a whole text.

    Args:
        size, heads, inner, options: as `EncoderLayer`.
        layers: how many.

    With pre_norm the result is normalised.
    """

    def __init__(self, size: int, heads: int, layers: int, inner: int, **options: Any) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(
            EncoderLayer(size, heads, inner, **options) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size) if options.get("pre_norm", True) else None

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """source (B, S, size), and booleans (B, S), True where it is real; the same shape.

        Raises:
            ShapeError: sizes that do not fit; DtypeError: a mask that is not boolean.
        """
        check_size(source, self.size, "source")
        check_shape(source_mask, source.shape[:-1], "source_mask")
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
        self.size = size
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
            memory: (B, S, size), the encoder's output.
            memory_mask: (B, S), True where the source is real.
            target_mask: (B, T), True where the target is real; with a cache of P positions,
                (B, P + T). Where padding comes last, nothing real sees it anyway.
            cache: of what was read before, which takes this too. Memory and its mask are those of
                the first call with it; later calls do not read theirs.

        Returns:
            (B, T, size).

        Raises:
            ShapeError: sizes that do not fit; DtypeError: a mask that is not boolean.
        """
        check_size(target, self.size, "target")
        past = 0 if cache is None else len(cache)
        batch, T = target.shape[:-2], target.shape[-2]
        check_shape(target_mask, (*batch, past + T), "target_mask")
        if cache is not None and past:
            memory_mask = cache.memory_mask
        else:
            check_size(memory, self.size, "memory")
            check_shape(memory_mask, memory.shape[:-1], "memory_mask")
        if cache is not None:
            cache.memory_mask = memory_mask
        held = [None] * len(self.layers) if cache is None else cache.layers
        for layer, one in zip(self.layers, held, strict=True):
            target = layer(target, memory, memory_mask=memory_mask, mask=target_mask, cache=one)
        return target if self.norm is None else self.norm(target)

    def reading(self, given: Mapping[str, Any]) -> Reading:
        target, cache, real = given["target"], given.get("cache"), given.get("target_mask")
        start = 0 if cache is None else len(cache)
        real = None if real is None else real[:, start:]
        return Reading(
            tuple(target.shape[:2]),
            start,
            real,
            source=given["memory"].shape[1],
            moves=0 if cache is None else cache.moves,
        )


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
            ShapeError: sizes that do not fit; DtypeError: a mask that is not boolean.
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
            ShapeError: sizes that do not fit; DtypeError: a mask that is not boolean.
        """
        memory = self.encode(source, source_mask)
        return self.decode(target, memory, memory_mask=source_mask, target_mask=target_mask)
