"""First derivatives that refuse a second one, clearly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard._errors import BackendError


def first_derivative(compute: Callable[..., tuple[Any, ...]], *tensors: Tensor | None) -> Any:
    """compute(*tensors) without a graph; a derivative of its results is refused.

    Raises (when torch asks for it):
        BackendError: a second derivative.
    """
    apply: Any = _Once.apply
    return apply(compute, *tensors)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Any, *tensors: Tensor | None) -> tuple[Any, ...]:
        found: tuple[Any, ...] = compute(*tensors)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise BackendError(
            "attention has no second derivative (the gradient of a gradient was asked for): "
            "backends compute its first derivative only"
        )
