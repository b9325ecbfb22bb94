"""Multi-head attention (Vaswani et al. 2017), with what has been added to it since."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.module import _has_any_global_hook

from regard._errors import ModelError, OptionError
from regard._masks import Mask
from regard._observation import Observe
from regard.nn._checks import (
    check_dropout,
    check_mask,
    check_projected,
    check_shape,
    check_size,
    common_batch,
)
from regard.nn._structured import attend_as_described
from regard.nn.cache import KeyValueCache
from regard.nn.functional import scaled_dot_product_attention
from regard.nn.positions import RotaryPositions, alibi_slopes


class MultiHeadAttention(nn.Module):
    """Concat(head_1, ..., head_h) W_o, head_i = softmax(Q_i K_iᵀ / √d_k) V_i (Vaswani et al. 2017).

    Every head has projections of its own, each of the whole input, and scores are divided by the
    root of d_k, the size of one head. The weights have the names that Llama and others gave them:
    q_proj, k_proj, v_proj and o_proj, whose rows (columns of o_proj) go head by head, so that
    `load_state_dict` takes such models' own. `from_torch` takes those of PyTorch's module.

        attention = MultiHeadAttention(512, 8)
        y = attention(x, causal=True)                     # self-attention
        y = attention(x, memory, padding=memory_mask)     # cross-attention

    Args:
        size: of the queries' vectors, and of the result.
        heads: of the queries.
        kv_heads: of keys and values, which neighbouring query heads share (Ainslie et al. 2023);
            heads is a multiple of them, and they are as many unless given.
        key_size, value_size: of the vectors that keys and values are made from; `size`, and
            `key_size`, unless given.
        d_k: of a head's queries and keys; size / heads unless given.
        d_v: of a head's values; d_k unless given.
        bias: whether the projections of queries, keys and values add one.
        output_bias: whether that of the result does; as `bias` unless given. Qwen2's does not.
        dropout: the chance of a weight to be dropped in training, 0 or more and less than 1.
        rotary: turns queries and keys by their position (Su et al. 2021).
        alibi: lowers scores by the distance times the head's slope (Press et al. 2022).
        sinks: whether each head learns the logit of one more key, which has no value.
        device, dtype: of the parameters.

    Projections begin Glorot uniform, biases and sinks at zero.

    Raises:
        OptionError: numbers that do not divide each other, or are outside their range.
    """

    slopes: Tensor | None

    def __init__(
        self,
        size: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        key_size: int | None = None,
        value_size: int | None = None,
        d_k: int | None = None,
        d_v: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        dropout: float = 0.0,
        rotary: RotaryPositions | None = None,
        alibi: bool = False,
        sinks: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size, self.heads, self.dropout = size, heads, dropout
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.key_size = size if key_size is None else key_size
        self.value_size = self.key_size if value_size is None else value_size
        _check_heads(size, heads, self.kv_heads, d_k)
        check_dropout(dropout)
        self.d_k = size // heads if d_k is None else d_k
        self.d_v = self.d_k if d_v is None else d_v
        own: Any = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(size, heads * self.d_k, bias, **own)
        self.k_proj = nn.Linear(self.key_size, self.kv_heads * self.d_k, bias, **own)
        self.v_proj = nn.Linear(self.value_size, self.kv_heads * self.d_v, bias, **own)
        output_bias = bias if output_bias is None else output_bias
        self.o_proj = nn.Linear(heads * self.d_v, size, output_bias, **own)
        if rotary is not None and rotary.d_k != self.d_k:
            raise OptionError(f"rotary: is made for d_k = {rotary.d_k}; needs {self.d_k}")
        self.rotary = rotary
        self.sinks = nn.Parameter(torch.empty(heads, **own)) if sinks else None
        slopes = alibi_slopes(heads).to(device) if alibi else None
        self.register_buffer("slopes", slopes, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as at the beginning, drawn anew."""
        self._reset_slopes()
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def _reset_slopes(self) -> None:
        if self.slopes is not None:
            self.slopes = alibi_slopes(self.heads).to(self.slopes.device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What every cast or move of a module goes through, and slopes would be rounded by."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._reset_slopes()
        return self

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> "MultiHeadAttention":
        """One that computes what a module of PyTorch does, with a copy of its weights.

        It takes (batch, L, size), whatever `batch_first` of the module says. Where weights are
        frozen, so are their copies.

        Raises:
            ModelError: the module adds keys of its own (bias_k and bias_v, or add_zero_attn).
        """
        if module.bias_k is not None or module.add_zero_attn:
            named = "bias_k and bias_v" if module.bias_k is not None else "add_zero_attn"
            raise ModelError(f"from_torch: the module adds a key ({named}); needs one without")
        made = cls(
            module.embed_dim,
            module.num_heads,
            key_size=module.kdim,
            value_size=module.vdim,
            bias=module.in_proj_bias is not None,
            dropout=module.dropout,
        ).to(module.out_proj.weight)
        inputs = [made.q_proj, made.k_proj, made.v_proj]
        packed: Tensor | None = module.in_proj_weight
        if packed is None:
            separate = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
            for projection, weight in zip(inputs, separate, strict=True):
                _copy(weight, projection.weight)
        else:
            _copy(packed, *(projection.weight for projection in inputs))
        _copy(module.in_proj_bias, *(projection.bias for projection in inputs))
        _copy(module.out_proj.weight, made.o_proj.weight)
        _copy(module.out_proj.bias, made.o_proj.bias)
        return made.train(module.training)

    def project(self, key: Tensor, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads, for `forward(..., projected=True)`.

        A decoder makes those of the encoder's output once. Keys are not turned by `rotary`.

        Args:
            key: (*batch, S, key_size).
            value: (*batch, S, value_size); key unless given.

        Returns:
            (*batch, kv_heads, S, d_k) and (*batch, kv_heads, S, d_v).

        Raises:
            ShapeError: vectors of another size.
        """
        value = key if value is None else value
        check_size(key, self.key_size, "key")
        check_size(value, self.value_size, "value")
        if key is value:
            k, v = self._linear(key, self.k_proj, self.v_proj)
        else:
            k, v = self.k_proj(key), self.v_proj(value)
        return _split(k, self.kv_heads), _split(v, self.kv_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Tensor | Mask | None = None,
        padding: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        projected: bool = False,
        observe: Observe | None = None,
    ) -> Any:
        """What the queries gather from the values.

        Args:
            query: (*batch, L, size).
            key: (*batch, S, key_size); the query unless given: self-attention.
            value: (*batch, S, value_size); the key unless given.
            mask: booleans, True where a query may attend, of any shape that broadcasts to
                (*batch, heads, L, S); or one of regard's masks. With a cache S counts its keys
                too, and masks that move with the diagonal count the queries on from its length.
            padding: (*batch, S), True where a key is real; with a cache S counts its keys too.
            causal: query i sees no key after i; with a cache, after its own position.
            cache: holds the keys and values of earlier calls, which come before those of this one,
                and takes these, unless the call fails.
            projected: whether key and value are what `project` returned.
            observe: which statistics of the weights to gather on the way.

        Returns:
            (*batch, L, size); with `observe`, a pair of it and an `Observation` with all heads.

        Raises:
            ShapeError: sizes that do not fit.
            DtypeError: a mask that is neither booleans nor one of regard's.
            OptionError: projected without key and value, or with a cache.
        """
        check_size(query, self.size, "query")
        q, k, v = self._heads(query, key, value, projected, cache)
        past = 0 if cache is None else len(cache)
        if self.rotary is not None:
            q, k = self.rotary(q, past), self.rotary(k, past)
        if cache is not None:
            k, v = cache.joined(k, v)
        _check_masks(mask, padding, q, k)
        found = self._attend(q, k, v, mask, padding, causal, past, observe)
        if cache is not None:
            cache.key, cache.value = k, v
        context = found if observe is None else found[0]
        result = self.o_proj(context.transpose(-2, -3).flatten(-2))
        return result if observe is None else (result, found[1])

    def _heads(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        projected: bool,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (*batch, heads, length, d)."""
        if projected:
            if key is None or value is None or cache is not None:
                raise OptionError("projected: needs both key and value, and no cache")
            check_projected(key, self.kv_heads, self.d_k, "key")
            check_projected(value, self.kv_heads, self.d_v, "value")
            return _split(self.q_proj(query), self.heads), key, value
        if key is None and value is None and self.key_size == self.value_size == self.size:
            q, k, v = self._linear(query, self.q_proj, self.k_proj, self.v_proj)
            kv = self.kv_heads
            return _split(q, self.heads), _split(k, kv), _split(v, kv)
        return _split(self.q_proj(query), self.heads), *self.project(
            query if key is None else key, value
        )

    @staticmethod
    def _linear(x: Tensor, *projections: nn.Linear) -> tuple[Tensor, ...]:
        """Several projections of one input: a single product, unless joining the weights takes
        longer than it saves, as for the one query of a decoding step, or more than a product
        happens in one of them, or a tracer would take the input's size for fixed."""
        # Others may have no weight.
        kinds = all(type(p) is nn.Linear for p in projections) and not torch.compiler.is_compiling()
        large = kinds and x.numel() >= sum(p.weight.numel() for p in projections)
        if not large or not _are_mere_products(projections):
            return tuple(p(x) for p in projections)
        weight = torch.cat([p.weight for p in projections])
        biased = projections[0].bias is not None
        bias = torch.cat([p.bias for p in projections]) if biased else None
        return torch.split(linear(x, weight, bias), [p.out_features for p in projections], -1)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | Mask | None,
        real: Tensor | None,
        is_causal: bool,
        past: int,
        observe: Observe | None,
    ) -> Any:
        """By the operator that torch.compile sees, or, for what that cannot say, past it."""
        dropout = self.dropout if self.training else 0.0
        is_causal = is_causal and not (past and q.shape[-2] == 1)  # one new query sees all
        structured = isinstance(mask, Mask) or self.slopes is not None or self.sinks is not None
        if not structured and not (is_causal and past):
            return scaled_dot_product_attention(
                q,
                k,
                v,
                _shown(mask, real),
                dropout,
                is_causal,
                enable_gqa=self.kv_heads != self.heads,
                observe=observe,
            )
        return attend_as_described(
            q,
            k,
            v,
            mask=mask,
            real=real,
            causal=is_causal,
            past=past,
            slopes=self.slopes,
            sinks=self.sinks,
            dropout=dropout,
            observe=observe,
        )

    def extra_repr(self) -> str:
        shared = "" if self.kv_heads == self.heads else f", kv_heads={self.kv_heads}"
        return f"{self.size}, {self.heads}{shared}, d_k={self.d_k}, d_v={self.d_v}"


def _split(x: Tensor, heads: int) -> Tensor:
    """(*batch, L, heads * d) as (*batch, heads, L, d)."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-2, -3)


def _are_mere_products(projections: tuple[nn.Linear, ...]) -> bool:
    """Whether calls do nothing but multiply by a weight, and all or none add a bias: no adapter,
    hook, pruning, quantisation or parametrisation asks to be called."""
    hooked = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return not hooked and all(
        type(p.weight) is nn.Parameter
        and "forward" not in p.__dict__
        and not (p._forward_pre_hooks or p._forward_hooks)
        and not (p._backward_pre_hooks or p._backward_hooks)
        and (p.bias is None) == (projections[0].bias is None)
        and p.weight.dtype is projections[0].weight.dtype
        for p in projections
    )


def _copy(packed: Tensor | None, *parameters: Tensor) -> None:
    """Puts the rows of one tensor into some parameters, which are frozen if it is."""
    if packed is not None:
        with torch.no_grad():
            for parameter, rows in zip(parameters, packed.chunk(len(parameters)), strict=True):
                parameter.copy_(rows).requires_grad_(packed.requires_grad)


def _check_masks(mask: Any, real: Tensor | None, q: Tensor, k: Tensor) -> None:
    """Raises DtypeError, ShapeError: mask or padding do not fit queries and keys."""
    if mask is None and real is None:
        return
    batch = common_batch(q.shape[:-3], k.shape[:-3])
    check_shape(real, (*batch, k.shape[-2]), "padding")
    if not isinstance(mask, Mask):
        check_mask(mask, (*batch, *q.shape[-3:-1], k.shape[-2]))


def _shown(mask: Any, real: Tensor | None) -> Tensor | None:
    """One tensor of booleans for mask and padding."""
    if real is None:
        shown: Tensor | None = mask
        return shown
    keys = real[..., None, None, :]
    return keys if mask is None else mask & keys


def _check_heads(size: int, heads: int, kv_heads: int, d_k: int | None) -> None:
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise OptionError(f"heads: got {heads}; needs a multiple of kv_heads, {kv_heads}")
    if d_k is None and size % heads:
        raise OptionError(f"size: got {size}; needs a multiple of heads, {heads}, or d_k given")
