"""The attention function that transformers calls for models whose attention is "regard".

transformers hands a registered function every option of every model and checks none of them, so
an option that is ignored is a wrong result without an error: each one is either served or refused.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from regard._errors import DtypeError, OptionError
from regard._masks import Mask, causal, dense, documents
from regard._watch.active import run
from regard._watch.joined import all_of
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
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "seq_idx",
        "use_cache",
    }
)

# Attentions without a mask that see everything, though their is_causal says otherwise.
SEES_ALL = frozenset({"BridgeTowerSelfAttention"})


def register() -> None:
    """Makes "regard" an attention implementation of transformers; more than once does no harm.

    torch.compile leaves its graph for both: they read numbers of tensors and call the kernels.
    """
    outside: Any = torch.compiler.disable
    AttentionInterface.register(NAME, outside(attention_forward))
    AttentionMaskInterface.register(NAME, outside(make_mask))


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
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    block_indices: torch.Tensor | None = None,
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
        cu_seq_lens_q, cu_seq_lens_k: where packed sequences begin, and the last one's end: queries
            see keys of their own sequence only. Of a batch of one.
        indices: (batch, L, n), the only keys that each query may see.
        block_indices: the only blocks of keys; the module's own indexer makes a mask of them.
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
        is_causal = _who(module) not in SEES_ALL and bool(getattr(module, "is_causal", True))
    is_causal = is_causal and query.shape[2] > 1
    if block_indices is not None:
        attention_mask = _of_blocks(module, block_indices, attention_mask, query, key, others)
    mask, bias = _mask_and_bias(attention_mask, is_causal)
    packed = _sequences(module, cu_seq_lens_q, cu_seq_lens_k, query, key, is_causal)
    mask = all_of([mask, packed])
    if indices is not None:
        chosen = torch.zeros(*indices.shape[:2], key.shape[2], dtype=torch.bool, device=key.device)
        mask = all_of([mask, dense(chosen.scatter_(-1, indices.long(), True)[:, None])])
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
        return attention_mask.parts()
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


def _sequences(
    module: Any, of_queries: Any, of_keys: Any, query: Any, key: Any, is_causal: bool
) -> Mask | None:
    """The mask of packed sequences."""
    if of_queries is None and of_keys is None:
        return None
    starts_q = of_keys if of_queries is None else of_queries
    starts_k = of_queries if of_keys is None else of_keys
    numbers = []
    for name, starts, x in (("cu_seq_lens_q", starts_q, query), ("cu_seq_lens_k", starts_k, key)):
        batch, length = x.shape[0], x.shape[2]
        if batch != 1 or starts.ndim != 1 or int(starts[0]) != 0 or int(starts[-1]) != length:
            raise OptionError(
                f"{name}: {_who(module)} passes {_brief(starts)} for a batch of {batch} with "
                f"{length} tokens; needs a batch of 1 and lengths that add up from 0 to {length}"
            )
        place = torch.arange(length, device=starts.device)
        numbers.append(torch.searchsorted(starts.contiguous(), place, right=True)[None])
    if is_causal and not torch.equal(starts_q, starts_k):
        raise OptionError(
            f"cu_seq_lens_k: {_who(module)} is causal and passes {_brief(starts_k)}, other than "
            f"cu_seq_lens_q, {_brief(starts_q)}; regard needs the same"
        )
    return documents(*numbers)


def _brief(numbers: torch.Tensor) -> str:
    listed = numbers.flatten().tolist()
    return str(listed) if len(listed) < 9 else f"[{', '.join(map(str, listed[:6]))}, ...]"


def _of_blocks(
    module: Any, blocks: Any, mask: Any, query: Any, key: Any, others: dict[str, Any]
) -> torch.Tensor:
    """A mask of scores, from the method that the model's eager attention calls."""
    make = getattr(getattr(module, "indexer", None), "build_block_mask", None)
    if make is None:
        raise OptionError(
            f"block_indices: {_who(module)} passes them without an indexer that makes a mask of "
            'them; use attn_implementation="eager" for this model'
        )
    positions = others.get("position_ids")
    made: torch.Tensor = make(blocks, mask, key.shape[2], query.dtype, query.device, positions)
    return made


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
