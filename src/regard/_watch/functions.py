"""PyTorch's own attention functions, intercepted while a model runs.

Models that are none of transformers' call `scaled_dot_product_attention`, PyTorch's or regard's,
`torch.nn.MultiheadAttention` or the modules of regard.nn. A torch function mode sees each of these
calls, however the function was imported, and keeps PyTorch's modules from taking a short way of
their own past them.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regard._watch.active import run
from regard.nn._structured import structured_attention
from regard.nn.functional import operands
from regard.nn.functional import scaled_dot_product_attention as own

PYTORCHS = F.scaled_dot_product_attention
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_SOFTMAX = {torch.softmax, F.softmax, Tensor.softmax}


class Interception(TorchFunctionMode):
    """Sends the attention functions that modules of a model call to `run`.

    Attributes:
        stack: the modules whose forward passes are under way, innermost last.
        by_hand: names of modules that took a softmax over what may be scores.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.stack: list[Any] = []
        self.by_hand: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.stack:
            if func is PYTORCHS:
                return self._attend(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                return self._multi_head(*args, **kwargs)
            if func is own:
                return self._own(*args, **kwargs)
            if func is structured_attention:
                return self._structured(*args, **kwargs)
            if func in _SOFTMAX and _may_be_scores(args[0]):
                self.by_hand.add(self.names[id(self.stack[-1])])
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What PyTorch's function computes, by regard."""
        q, k, v, options = operands(query, key, value, attn_mask, is_causal, scale, enable_gqa)
        whole = q.ndim > 3  # a trace has batch and heads
        if not whole:
            q, k, v = q[None], k[None], v[None]
        context: Tensor = run(self.stack[-1], q, k, v, dropout_p, **options)
        context = context if whole else context[0]
        return context[0] if query.ndim == key.ndim == value.ndim == 2 else context

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        """`torch.nn.MultiheadAttention`, whose weights, if it is to return them, are its own."""
        given = _MULTI_HEAD.bind(*args, **kwargs).arguments
        with patch.object(F, "scaled_dot_product_attention", self._attend):
            if not given.get("need_weights", True):
                return F.multi_head_attention_forward(**given)
            with torch.no_grad():
                aside = {"need_weights": False, "training": False}
                F.multi_head_attention_forward(**given | aside)
        return F.multi_head_attention_forward(**given)

    def _own(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        *,
        observe: Any,
        **options: Any,
    ) -> Any:
        """regard's function, whose observation, if it is to return one, is its own."""
        given = (query, key, value, attn_mask)
        if observe is None:
            return self._attend(*given, dropout_p, is_causal, **options)
        with torch.no_grad():
            self._attend(*given, 0.0, is_causal, **options)
        return own(*given, dropout_p, is_causal, observe=observe, **options)

    def _structured(self, *tensors: Tensor, dropout: float, observe: Any, **options: Any) -> Any:
        """The same of what regard.nn calls where there are biases, sinks or described masks."""
        whole = tensors[0].ndim > 3
        q, k, v = tensors if whole else (x[None] for x in tensors)
        given = {"scale": None, "softcap": None} | options
        if observe is None:
            context: Tensor = run(self.stack[-1], q, k, v, dropout, **given)
            return context if whole else context[0]
        with torch.no_grad():
            run(self.stack[-1], q, k, v, 0.0, **given)
        return structured_attention(*tensors, dropout=dropout, observe=observe, **options)


def _may_be_scores(x: Any) -> bool:
    square = isinstance(x, Tensor) and x.ndim == 3 and x.shape[-1] == x.shape[-2]
    return square or (isinstance(x, Tensor) and x.ndim >= 4)


@contextmanager
def intercepted(model: Any, names: dict[int, str]) -> Iterator[Interception]:
    """A model's attention functions sent to `run`, for as long as the context lasts."""
    mode = Interception(names)

    def push(module: Any, _: Any) -> None:
        mode.stack.append(module)

    def pop(module: Any, *_: Any) -> None:  # also after an exception
        if mode.stack and mode.stack[-1] is module:
            mode.stack.pop()

    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(module.register_forward_pre_hook(push).remove)
            undo.callback(module.register_forward_hook(pop, always_call=True).remove)
        undo.enter_context(mode)
        yield mode
