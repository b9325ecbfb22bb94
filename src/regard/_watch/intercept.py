"""Watching a model: its attention is regard's for one run, and what it was before after that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from regard._errors import ModelError
from regard._observation import Observe
from regard._watch.trace import Trace


@contextmanager
def watch(
    model: Any,
    *,
    observe: Observe | None = None,
    layers: Any = None,
    heads: Any = None,
    keep: str = "weights",
    dtype: Any = None,
    budget: int | str | None = None,
    progress: bool = False,
    tokenizer: Any = None,
) -> Iterator[Trace]:
    """Collects the attentions of one run of a model: a forward pass, or a whole generation.

        with regard.watch(model, observe=regard.Observe(entropy=True)) as trace:
            model.generate(**inputs)
        trace[3].weights[0, 5, -1]       # layer 3, batch entry 0, head 5, the last query's weights
        trace[3].observation.entropy

    Any PyTorch model: those of transformers through its attention interface, all others where
    they call `torch.nn.functional.scaled_dot_product_attention`, `torch.nn.MultiheadAttention` or
    regard.nn. Meanwhile the model computes with regard's attention, and not compiled.
    Afterwards, also after an exception, it is as it was. Watches of one model may be nested; each
    gets its own trace.

    The forward passes of a generation are one matrix per layer and head: its rows are all tokens
    that were read, prompt and generated, each against the keys that it had. A key is kept once.

    Queries and keys are kept by reference, those that may be overwritten as copies; weights are
    computed from them when asked for. Padded queries, as the call's attention_mask tells, have
    zero weights and count in no statistic.

    Args:
        model: a torch module.
        observe: what to gather while the model runs; the lse is always there.
        layers: numbers in the order in which attentions run, from 0, or names of modules; all
            unless given.
        heads: numbers; all unless given.
        keep: "weights", for which queries and keys are kept; or "statistics", what `observe` says
            and nothing else.
        dtype: what kept queries and keys are rounded to: "bfloat16", "float16" or "float32";
            weights are then those of the rounded numbers.
        budget: bytes, or "2GB", that the trace may hold.
        progress: whether to show a bar, a step for every attention.
        tokenizer: the model's, for `trace.tokens` and `trace.words`.

    Yields:
        The trace.

    Raises:
        ModelError: the model has no attention, or none that can be reached; it was changed while
            it was watched; another thread watches or runs it; a forward pass does not go on where
            the last one ended (another text, beam search). An attention that was not reached
            beside others that were is warned about by name.
        LayerError: layers that the model does not have.
        LimitError: the run would not fit into the budget; the message says what to leave out.
        DtypeError, OptionError: an argument of another kind or outside its range.
    """
    try:
        from regard._watch.models import watching
        from regard._watch.wanted import want
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModelError(
            "watch: needs torch, which is not installed: pip install 'regard[torch]'"
        ) from None
    wanted = want(observe, layers, heads, keep, dtype, budget)
    with watching(model, wanted, progress, tokenizer) as trace:
        yield trace
