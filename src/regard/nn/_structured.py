"""Attention with what PyTorch's arguments cannot say: masks as descriptions, ALiBi, sinks."""

from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any

from torch import Tensor
from torch._compile import _disable_dynamo
from torch.overrides import handle_torch_function, has_torch_function

from regard._attention import attention
from regard._bias import Bias, alibi
from regard._masks import Band, Both, Either, Mask, as_mask, padding
from regard._masks import causal as causal_mask
from regard._observation import Observe


# What is below reads numbers and calls the kernels: torch.compile leaves its graph for it.
# `torch.compiler.disable` does the same, but loads the whole compiler with `import regard.nn`,
# which takes longer than loading torch.
@_disable_dynamo
def attend_as_described(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None,
    real: Tensor | None,
    causal: bool,
    past: int,
    slopes: Tensor | None,
    sinks: Tensor | None,
    dropout: float,
    observe: Observe | None,
) -> Any:
    """The context (*batch, heads, L, d_v), and with `observe` an Observation beside it.

    Args:
        query, key, value, dropout, observe: as `regard.attention`.
        mask: booleans that broadcast to (*batch, heads, L, S), or one of regard's masks, of which
            bands see the first query at position `past`.
        real: (*batch, S), True where a key is no padding.
        causal: whether a query sees no key after its own position, which is `past` and more.
        slopes, sinks: (heads,), of ALiBi, and the logits of one more key.
    """
    masks: list[Mask] = []
    if causal:
        masks.append(causal_mask(past))
    if real is not None:
        masks.append(padding(real))
    if mask is not None:
        masks.append(_moved(as_mask(mask), past))
    return structured_attention(
        query,
        key,
        value,
        mask=reduce(and_, masks) if masks else None,
        bias=None if slopes is None else alibi(slopes, past),
        sinks=sinks,
        dropout=dropout,
        observe=observe,
    )


def _moved(mask: Mask, past: int) -> Mask:
    """The mask for queries that follow `past` others; what is anchored at the end stays there."""
    if isinstance(mask, (Both, Either)):
        return type(mask)(_moved(mask.a, past), _moved(mask.b, past))
    if isinstance(mask, Band) and not isinstance(mask.offset, str):
        return replace(mask, offset=mask.offset + past)
    return mask


def structured_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None,
    bias: Bias | None,
    sinks: Tensor | None,
    dropout: float,
    observe: Observe | None = None,
) -> Any:
    """`regard.attention` where a torch function mode, as of `regard.watch`, sees the call."""
    options: dict[str, Any] = {"mask": mask, "bias": bias, "sinks": sinks, "dropout": dropout}
    tensors = (query, key, value)
    if has_torch_function(tensors):
        return handle_torch_function(
            structured_attention, tensors, *tensors, **options, observe=observe
        )
    return attention(query, key, value, **options, observe=observe)
