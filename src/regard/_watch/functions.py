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
from regard.nn.functional import additive_attention, additive_operands, operands
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
            if func is additive_attention:
                return self._additive(*args, **kwargs)
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
        found = operands(query, key, value, attn_mask, is_causal, scale, enable_gqa)
        return self._run(*found, dropout_p, query.ndim == key.ndim == value.ndim == 2)

    def _run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: dict[str, Any],
        dropout: float,
        single: bool,
    ) -> Tensor:
        whole = query.ndim > 3  # a trace has batch and heads
        if not whole:
            query, key, value = query[None], key[None], value[None]
        context: Tensor = run(self.stack[-1], query, key, value, dropout, **options)
        context = context if whole else context[0]
        return context[0] if single else context

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

    def _additive(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        vector: Tensor,
        attn_mask: Tensor | None,
        dropout_p: float,
        *,
        observe: Any,
    ) -> Any:
        """The same of the additive score."""
        found = additive_operands(query, key, value, vector, attn_mask)
        single = query.ndim == key.ndim == value.ndim == 2
        if observe is None:
            return self._run(*found, dropout_p, single)
        with torch.no_grad():
            self._run(*found, 0.0, single)
        return additive_attention(query, key, value, vector, attn_mask, dropout_p, observe=observe)

    def _structured(self, *tensors: Tensor, dropout: float, observe: Any, **options: Any) -> Any:
        """The same of what modules call where there are biases, sinks or described masks."""
        q, k, v = tensors
        given = {"scale": None, "softcap": None} | options
        if observe is None:
            return self._run(q, k, v, given, dropout, False)
        with torch.no_grad():
            self._run(q, k, v, given, 0.0, False)
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
            # One that attends to nothing stays without hooks: `regard.nn` computes several of them
            # by one product only if nobody listens, and to the bit as unwatched.
            if type(module) is torch.nn.Linear:
                continue
            undo.callback(module.register_forward_pre_hook(push).remove)
            undo.callback(module.register_forward_hook(pop, always_call=True).remove)
        undo.enter_context(mode)
        yield mode
