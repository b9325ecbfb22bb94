"""The layers of a Transformer (Vaswani et al. 2017)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from regard._errors import OptionError, ShapeError
from regard.nn._checks import check_dropout, check_shape, check_size
from regard.nn._drop import dropout as dropped
from regard.nn.cache import KeyValueCache, LayerCache
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
        check_dropout(dropout)
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
        hidden = dropped(hidden, self.dropout, self.training)
        down: Tensor = self.down(hidden)
        return down

    def extra_repr(self) -> str:
        return self.activation


class _Layer(nn.Module):
    """What layers of encoder and decoder share: a residual stream and where it is normalised."""

    def __init__(self, size: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        check_dropout(dropout)
        self.size, self.dropout, self.pre_norm = size, dropout, pre_norm

    def _add(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x and what a part makes of it."""
        found = part(norm(x) if self.pre_norm else x)
        found = dropped(found, self.dropout, self.training)
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
        super().__init__(size, dropout, pre_norm)
        self.self_attention = MultiHeadAttention(
            size, heads, kv_heads=kv_heads, dropout=dropout, rotary=rotary
        )
        self.feed_forward = FeedForward(size, inner, activation=activation, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, size), of which mask (B, S) says which are real; the same shape.

        Raises:
            ShapeError: sizes that do not fit; DtypeError: a mask that is not boolean.
        """
        check_size(x, self.size, "x")
        attend = self.self_attention
        x = self._add(x, self.norms[0], lambda x: attend(x, padding=mask))
        return self._add(x, self.norms[1], self.feed_forward)


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
        super().__init__(size, dropout, pre_norm)
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

        Raises:
            ShapeError: sizes that do not fit; DtypeError: a mask that is not boolean.
        """
        check_size(x, self.size, "x")
        own = None if cache is None else cache.own
        key, value = self._of_memory(memory, cache, tuple(x.shape[:-2]))
        check_shape(memory_mask, (*x.shape[:-2], key.shape[-2]), "memory_mask")
        x = self._add(
            x,
            self.norms[0],
            lambda x: self.self_attention(x, padding=mask, causal=True, cache=own),
        )
        if cache is not None:
            cache.memory.key, cache.memory.value = key, value
        x = self._add(
            x,
            self.norms[1],
            lambda x: self.cross_attention(x, key, value, padding=memory_mask, projected=True),
        )
        return self._add(x, self.norms[2], self.feed_forward)

    def _of_memory(
        self, memory: Tensor, cache: LayerCache | None, batch: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """The memory's keys and values, projected once for all steps with one cache.

        Raises:
            ShapeError: they are of another size or batch.
        """
        held = KeyValueCache() if cache is None else cache.memory
        name, key, value = "cache", held.key, held.value
        if key is None or value is None:
            check_size(memory, self.size, "memory")
            name, (key, value) = "memory", self.cross_attention.project(memory)
        if tuple(key.shape[:-3]) != batch:
            raise ShapeError(
                f"{name}: is of batch {tuple(key.shape[:-3])}; the target's is {batch}"
            )
        return key, value


def _begin(module: nn.Module) -> None:
    """Glorot uniform weights, and biases of zero."""
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
