"""The short way of a call that needs nothing of PyTorch but autograd: straight to the kernels.

PyTorch's dispatcher, through two kernels in Python, takes longer over a call than a small attention
does, and so do checks that are made twice.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from regard._backends.native_call import attend, gradients
from regard._masks import Band, Dense, Mask
from regard._problem import GREATEST
from regard.nn._ops import attention_backward


def _keys(*names: str) -> int:
    """A set of the dispatcher's keys, as `raw_repr` spells it."""
    keys: Any = torch._C.DispatchKeySet.from_raw_repr(0)
    for name in names:
        keys = keys.add(getattr(torch._C.DispatchKey, name))
    return int(keys.raw_repr())


# A tensor that is numbers in the memory of the CPU and nothing else; and the state of a thread in
# which no mode, transform or tracer waits for operators. Each outside and inside of
# torch.inference_mode.
CPU = {
    _keys("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU"),
    _keys("CPU", "AutocastCPU"),
}
IDLE = {_keys("BackendSelect", "ADInplaceOrView"), _keys("BackendSelect")}
_Function: Any = torch.autograd.Function  # which mypy does not know the types of
_keys_of, _state = torch._C._dispatch_keys, torch._C._dispatch_tls_local_include_set


def is_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether a call with these concerns nothing of PyTorch but their numbers and gradients."""
    return (
        type(query) is type(key) is type(value) is Tensor
        and (mask is None or (type(mask) is Tensor and _keys_of(mask).raw_repr() in CPU))
        and _keys_of(query).raw_repr() in CPU
        and _keys_of(key).raw_repr() in CPU
        and _keys_of(value).raw_repr() in CPU
        and _state().raw_repr() in IDLE
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
    )


def is_plain_tensor(x: Tensor) -> bool:
    """The same of one more tensor."""
    return type(x) in (Tensor, torch.nn.Parameter) and _keys_of(x).raw_repr() in CPU


def attend_directly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """The context of plain tensors; None where the mask's gradient is wanted, or where a shape,
    dtype or option is unusual or wrong and needs a closer look."""
    if not type(causal) is type(enable_gqa) is bool or query.ndim < 3 or key.ndim < 3:
        return None
    if scale is None:
        d_k = query.shape[-1]
        scale = 1 / math.sqrt(d_k) if d_k else 1.0
    elif type(scale) is not float or not abs(scale) <= GREATEST:
        return None
    if mask is not None and (
        not fits(mask, (*query.shape[:-1], key.shape[-2]))
        or mask.dtype not in (torch.bool, torch.float32, query.dtype)
    ):
        return None
    if torch.is_grad_enabled():
        if mask is not None and mask.requires_grad:
            return None
        if query.requires_grad or key.requires_grad or value.requires_grad:
            if query.dtype not in (torch.float32, torch.float64):  # the lse has another dtype
                return None
            options = mask, causal, scale, enable_gqa
            return _Directly.apply(query, key, value, *options)  # type: ignore[no-any-return]
    seen, bias = _lowered(query, key, mask, causal)
    return attend(query, key, value, seen, bias, scale, enable_gqa)  # type: ignore[no-any-return]


class _Directly(_Function):  # type: ignore[misc]
    """The context, with gradients of query, key and value; None, with nothing remembered, where
    that needs a closer look."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
        grouped: bool,
    ) -> Tensor | None:
        seen, bias = _lowered(query, key, mask, causal)
        found = attend(query, key, value, seen, bias, scale, grouped, with_lse=True)
        if found is None:
            return None
        context: Tensor
        context, lse = found
        ctx.save_for_backward(context, lse, query, key, value, mask)
        ctx.causal, ctx.scale = causal, scale
        return context

    @staticmethod
    def backward(ctx: Any, of_context: Tensor) -> Any:
        context, lse, query, key, value, mask = ctx.saved_tensors
        given = (context, lse, query, key, value)
        found: Any = None
        others = of_context, context, lse
        plain = is_plain(query, key, value, mask) and all(map(is_plain_tensor, others))
        if plain and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            seen, bias = _lowered(query, key, mask, ctx.causal)
            found = gradients(of_context, query, key, value, context, lse, seen, bias, ctx.scale)
        if found is None:  # a second derivative, a transform, a compiler, hooks on what is saved
            found = attention_backward(
                of_context, None, *given, mask, None, None, ctx.causal, ctx.scale, 0.0, False
            )
        wanted = zip(found, ctx.needs_input_grad[:3], strict=False)
        return *(x if want else None for x, want in wanted), None, None, None, None


def _lowered(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Mask | None, Tensor | None]:
    """PyTorch's two arguments as the kernels take them: who sees whom, and what is added."""
    seen = Band(np.zeros(query.shape[:-3], np.int64), right=0) if causal else None
    if mask is None:
        return seen, None
    full = mask.expand((*query.shape[:-1], key.shape[-2]))
    if mask.dtype is not torch.bool:
        return seen, full
    return Dense(full) if seen is None else seen & Dense(full), None


def fits(mask: Tensor, full: tuple[int, ...]) -> bool:
    """Whether a mask broadcasts to the full shape."""
    sizes = zip(reversed(mask.shape), reversed(full), strict=False)
    return mask.ndim <= len(full) and all(n in (1, size) for n, size in sizes)
