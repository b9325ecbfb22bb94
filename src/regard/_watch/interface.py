"""The attention function that transformers calls for models whose attention is "regard".

transformers hands a registered function every option of every model and checks none of them, so
an option that is ignored is a wrong result without an error: each one is either served or refused.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from regard._errors import DtypeError, OptionError
from regard._masks import causal, dense
from regard._watch.active import run
from regard._watch.masks import CarriedMask, make_mask
from regard._weights import weights

NAME = "regard"

# Options that change nothing about the weights: bookkeeping of the layers around, and advice to
# other back ends. The sliding window is in the mask already; see _check_window.
HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


def register() -> None:
    """Makes "regard" an attention implementation of transformers; more than once does no harm."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, make_mask)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    sliding_window: int | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One attention of a model.

    Args:
        module: whose attention it is; says whether it is causal, unless is_causal does.
        query: (batch, heads, L, d_k); key, value: (batch, kv_heads, S, ...), not repeated.
        attention_mask: from `make_mask`; or booleans, True where it may attend, or scores to add,
            either (batch or 1, heads or 1, L, S). None is causal where the model is and L > 1.
        dropout, scaling, softcap: as in `regard.attention`; None for the default.
        is_causal: only asked where there is no mask.
        position_bias: added to the scores, after the softcap.
        s_aux, sinks: two names of the learned sink logits, (heads,).
        sliding_window: only checked; masks hold it.
        output_attentions: also return the weights, all of them; they carry no gradient.

    Returns:
        The context (batch, L, heads, d_v), and the weights (batch, heads, L, S) or None.

    Raises:
        OptionError: an option that regard does not serve, by name.
        DtypeError: a mask that is no tensor of booleans or floats; output_attentions where a
            gradient is expected.
        LimitError: output_attentions of more weights than are given at once.
    """
    _refuse(module, others)
    _check_window(module, sliding_window, attention_mask, key)
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    mask, bias = _mask_and_bias(attention_mask, query.shape[2] > 1 and is_causal)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "scale": scaling,
        "softcap": softcap,
        "sinks": _sinks(module, s_aux, sinks),
    }
    position = None
    if isinstance(attention_mask, CarriedMask):
        position = attention_mask.q_offset, attention_mask.kv_offset
    context = run(module, query, key, value, dropout=dropout, position=position, **options)
    context = context.transpose(1, 2).contiguous()
    if not output_attentions:
        return context, None
    if dropout:
        raise OptionError(
            f"output_attentions: regard gives weights before dropout, which is {dropout} here; "
            "call model.eval() first"
        )
    return context, weights(query, key, **options)[..., :, :].to(query.dtype)


def _mask_and_bias(attention_mask: Any, is_causal: bool) -> tuple[Any, torch.Tensor | None]:
    if attention_mask is None:
        return (causal() if is_causal else None), None
    if isinstance(attention_mask, CarriedMask):
        return attention_mask.mask, None
    if not isinstance(attention_mask, torch.Tensor):
        raise DtypeError(
            f"attention_mask: got {type(attention_mask).__name__}; needs a tensor of booleans, "
            "True where it may attend, or of scores to add"
        )
    if attention_mask.dtype == torch.bool:
        return dense(attention_mask), None
    if attention_mask.is_floating_point():
        return None, attention_mask
    raise DtypeError(f"attention_mask: got dtype {attention_mask.dtype}; needs booleans or floats")


def _sinks(module: Any, s_aux: Any, sinks: Any) -> torch.Tensor | None:
    given = {n: x for n, x in (("s_aux", s_aux), ("sinks", sinks)) if x is not None}
    if len(given) == 2:
        raise OptionError(f"{_who(module)} passes s_aux and sinks; they mean the same")
    for name, logits in given.items():
        if logits.ndim != 1:
            raise OptionError(
                f"{name}: {_who(module)} passes sinks of shape {tuple(logits.shape)}; regard "
                "needs one per head, (heads,)"
            )
        found: torch.Tensor = logits
        return found
    return None


def _check_window(module: Any, window: int | None, mask: Any, key: torch.Tensor) -> None:
    if window is not None and mask is None and key.shape[2] > window:
        raise OptionError(
            f"sliding_window: {_who(module)} asks for {window} of {key.shape[2]} keys without a "
            "mask; regard takes the window from the mask"
        )


def _refuse(module: Any, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name not in HARMLESS and value is not None and value is not False:
            raise OptionError(
                f"{name}: {_who(module)} passes this option, which regard does not serve; use "
                'attn_implementation="eager" for this model'
            )


def _who(module: Any) -> str:
    return type(module).__name__
