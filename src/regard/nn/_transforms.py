"""How the operators of `_ops` behave under autograd and under torch.func.vmap."""

from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from regard._backends.derivative import _Once
from regard._errors import BackendError
from regard.nn._ops import LIBRARY, Call, attention, attention_backward, compute_attention

__all__ = ["attention", "attention_directly"]

# `torch.library.register_autograd` would do, but it adds 10 us to a call, knows no vmap of a
# gradient, and drops the tangents of forward mode in silence. This is what it rests on.
_below_autograd = torch._C._AutoDispatchBelowAutograd
_keys_below = torch._C._after_autograd_keyset
_NUMBERS = len(Call._fields)  # of an operator's arguments come before what is observed
_LEARNED = Call._fields.index("seed")  # the tensors before it have gradients
_Function: Any = torch.autograd.function._SingleLevelFunction  # one level of torch.func, or none


class _Attention(_Function):  # type: ignore[misc]
    """(context, lse, *statistics), with gradients through the first two."""

    @staticmethod
    def forward(ctx: Any, keys: Any, *arguments: Any) -> tuple[Tensor, ...]:
        context, lse, statistics = _beneath(attention, keys, arguments)
        tensors, ctx.options = arguments[: _LEARNED + 1], arguments[_LEARNED + 1 : _NUMBERS]
        ctx.save_for_backward(context, lse, *tensors)
        ctx.rest = len(arguments) - _LEARNED
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        return context, lse, *statistics

    @staticmethod
    def backward(ctx: Any, of_context: Tensor | None, of_lse: Tensor | None, *_: None) -> Any:
        wanted = dict(zip(Call._fields, ctx.needs_input_grad[1 : _LEARNED + 1], strict=False))
        saved = (*ctx.saved_tensors, *ctx.options)
        found = attention_backward(of_context, of_lse, *saved, wanted["mask"])
        gradients = [x if want else None for x, want in zip(found, wanted.values(), strict=True)]
        return None, *gradients, *[None] * ctx.rest


class _Gradients(_Function):  # type: ignore[misc]
    """The gradients, whose own derivative is refused when it is asked for."""

    @staticmethod
    def forward(ctx: Any, keys: Any, *arguments: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _beneath(attention_backward, keys, arguments)
        return found

    @staticmethod
    def backward(ctx: Any, *of_gradients: Any) -> Any:
        return _Once.backward(ctx, *of_gradients)  # the refusal, in the words of all backends


def attention_directly(*arguments: Any) -> Any:
    """`attention` past the dispatcher, where nothing but autograd waits for it."""
    return _differentiable_attention(None, *arguments)


def _differentiable_attention(keys: Any, *arguments: Any) -> Any:
    if not _needs_graph(arguments):
        return _beneath(attention, keys, arguments)
    context, lse, *statistics = _apply(_Attention, keys, arguments)
    return context, lse, statistics


def _differentiable_attention_backward(keys: Any, *arguments: Any) -> Any:
    if not _needs_graph(arguments):
        return _beneath(attention_backward, keys, arguments)
    return _apply(_Gradients, keys, arguments)


def _beneath(operator: Any, keys: Any, arguments: tuple[Any, ...]) -> Any:
    """The operator below this level of autograd. Under torch.func there may be others below, and
    a Function has turned off what they go by. Without keys, past the dispatcher."""
    if keys is None:
        return compute_attention(*arguments)
    with _below_autograd():
        if not torch._C._are_functorch_transforms_active():
            return operator.redispatch(keys & _keys_below, *arguments)
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return operator.redispatch(keys & _keys_below, *arguments)


def _apply(function: Any, keys: Any, arguments: tuple[Any, ...]) -> Any:
    if not torch._C._are_functorch_transforms_active():
        return function.apply(keys, *arguments)
    with enable_single_level_autograd_function():
        return function.apply(keys, *arguments)


def _needs_graph(arguments: tuple[Any, ...]) -> bool:
    """Whether gradients are expected to flow.

    Raises:
        BackendError: tangents are.
    """
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    unpack: Any = forward_ad.unpack_dual
    if forward_ad._current_level >= 0 and any(unpack(x).tangent is not None for x in tensors):
        raise BackendError(
            "attention has no forward-mode derivative (torch.func.jvp, dual tensors): backends "
            "compute the derivative of backward mode only"
        )
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _vmapped_attention(info: Any, in_dims: Any, *arguments: Any) -> Any:
    """One more batch dimension; calls one by one where they share a seed, or differ in spans or in
    the score's vector, of which an operator takes one."""
    size, dropout = info.batch_size, arguments[_NUMBERS - 1]
    own = (in_dims[Call._fields.index("vector")], *in_dims[_NUMBERS : _NUMBERS + 2])
    if dropout or own != (None, None, None):
        found = _one_by_one(attention, size, in_dims, arguments)
    else:
        tensors = _all_in_front(arguments[:3], in_dims, size)
        mask = _mask_in_front(arguments[3], in_dims[3], tensors[0].ndim)
        found = attention(*tensors, mask, *arguments[4:])
    return found, (0, 0, [0] * len(found[2]))


def _vmapped_attention_backward(info: Any, in_dims: Any, *arguments: Any) -> Any:
    call, size, of_mask = Call(*arguments[4:-1]), info.batch_size, arguments[-1]
    mask, dropout = call.mask, call.dropout
    if dropout or call.vector is not None:  # of whose gradients every entry has its own
        found = _one_by_one(attention_backward, size, in_dims, arguments)
    else:
        tensors = _all_in_front(arguments[:7], in_dims, size)
        if of_mask and mask is not None:  # of which every entry has a gradient of its own
            mask, dim = _in_front(mask, in_dims[7], size), 0
        else:
            dim = in_dims[7]
        fitted = _mask_in_front(mask, dim, tensors[2].ndim)
        *gradients, of_bias, _ = attention_backward(*tensors, fitted, *arguments[8:])
        of_bias = of_bias if mask is None or not of_mask else of_bias.reshape(mask.shape)
        return (*gradients, of_bias, of_bias.new_empty(0)), (0, 0, 0, 0 if of_mask else None, None)
    return found, (0, 0, 0, 0, 0)


def _all_in_front(tensors: Any, dims: Any, size: int) -> list[Any]:
    """Tensors with `size` entries along a new first dimension, which some had elsewhere."""
    return [_in_front(x, dim, size) for x, dim in zip(tensors, dims, strict=False)]


def _in_front(x: Tensor | None, dim: int | None, size: int) -> Any:
    if x is None:
        return None
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _mask_in_front(mask: Tensor | None, dim: int | None, ndim: int) -> Tensor | None:
    """A mask that broadcasts to ndim dimensions, of which the first is its own `dim`."""
    if mask is None or dim is None:
        return mask
    mask = mask.movedim(dim, 0)
    return mask[(slice(None), *[None] * (ndim - mask.ndim))]


def _one_by_one(operator: Any, size: int, in_dims: Any, arguments: Any) -> Any:
    def entry(n: int) -> list[Any]:
        pairs = zip(arguments, in_dims, strict=True)  # a list of numbers has a list of dims
        return [x.select(dim, n) if isinstance(dim, int) else x for x, dim in pairs]

    found = [operator(*entry(n)) for n in range(size)]
    return tree_map(lambda *entries: torch.stack(entries), *found)


LIBRARY.impl("attention", _differentiable_attention, "Autograd", with_keyset=True)
LIBRARY.impl("attention_backward", _differentiable_attention_backward, "Autograd", with_keyset=True)
torch.library.register_vmap(attention, _vmapped_attention, lib=LIBRARY)
torch.library.register_vmap(attention_backward, _vmapped_attention_backward, lib=LIBRARY)
