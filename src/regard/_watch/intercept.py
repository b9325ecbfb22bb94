"""Watching a model: its attention is regard's for one run, and what it was before after that."""

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from regard._errors import DtypeError, ModelError
from regard._observation import Observe
from regard._watch.active import Watcher, watchers
from regard._watch.trace import Trace

LOOKS_LIKE_ATTENTION = re.compile("attention|attn", re.IGNORECASE)


@contextmanager
def watch(model: Any, *, observe: Observe | None = None, tokenizer: Any = None) -> Iterator[Trace]:
    """Collects the attentions of one forward pass of a model.

        with regard.watch(model, observe=regard.Observe(entropy=True)) as trace:
            model(**inputs)
        trace[3].weights[0, 5, -1]       # layer 3, batch entry 0, head 5, the last query's weights
        trace[3].observation.entropy

    The model computes with regard's attention meanwhile. Afterwards, also after an exception, it
    has the one that it had before. Watches of one model may be nested; each gets its own trace.

    Queries and keys are kept by reference, those that may be overwritten as copies; weights are
    computed from them when asked for. Padded queries, as the call's attention_mask tells, have
    zero weights and count in no statistic; in encoder-decoder models they are not told apart.

    Args:
        model: of transformers, or a torch module that holds one.
        observe: what to gather while the model runs; the lse is always there.
        tokenizer: the model's, for `trace.tokens` and `trace.words`.

    Yields:
        The trace, which holds one forward pass: each generated token, for example, is another one.

    Raises:
        ModelError: the model has no attention, or none that goes through transformers' attention
            interface; a second forward pass inside the block. An attention that did not go through
            it beside others that did is warned about by name.
        DtypeError: observe is no Observe.
    """
    if observe is not None and not isinstance(observe, Observe):
        raise DtypeError(f"observe: got {type(observe).__name__}; needs regard.Observe(...)")
    hosts = _hosts(model)
    lookalikes = {
        name: module
        for name, module in model.named_modules()
        if LOOKS_LIKE_ATTENTION.search(type(module).__name__) and module not in hosts
    }
    _check(hosts, lookalikes)
    trace = Trace(tokenizer)
    names = {id(module): name for name, module in model.named_modules()}
    watcher = Watcher(names, observe or Observe(), trace)
    ran: set[str] = set()
    with ExitStack() as undo:
        undo.enter_context(_switched(model))
        for module in {model, *hosts}:
            undo.enter_context(_passes(module, watcher))
        for name, module in lookalikes.items():
            handle = module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
            undo.callback(handle.remove)
        watchers.append(watcher)
        undo.callback(watchers.remove, watcher)
        yield trace
    _report(type(model).__name__, ran, trace)


def _hosts(model: Any) -> list[Any]:
    """The transformers models in a model, itself included."""
    try:
        from regard._watch.interface import register
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise ModelError(
            f"watch: needs {error.name}, which is not installed: pip install 'regard[hf]'"
        ) from None
    from torch.nn import Module
    from transformers import PreTrainedModel

    register()
    kind = type(model).__name__
    if not isinstance(model, Module):
        raise ModelError(f"model: got {kind}; needs a model of transformers")
    hosts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not hosts:
        raise ModelError(f"model: got {kind}; only models of transformers can be watched")
    return hosts


def _check(hosts: list[Any], lookalikes: dict[str, Any]) -> None:
    kind = type(hosts[0]).__name__
    if not lookalikes:
        raise ModelError(f"model: {kind} has no attention to watch")
    if not any(host._can_set_attn_implementation() for host in hosts):
        raise ModelError(_no_interface(kind, lookalikes))


def _no_interface(kind: str, modules: Any) -> str:
    listed = list(modules)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (
        f"model: the attention of {kind} does not go through transformers' attention interface, "
        f"so it cannot be watched: {', '.join(listed[:3])}{more}"
    )


@contextmanager
def _switched(model: Any) -> Iterator[None]:
    """The model with "regard" in each of its configurations, and then what each held before."""
    from transformers import PreTrainedConfig

    found: dict[int, Any] = {}

    def gather(config: Any) -> None:
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            for part in config.sub_configs:
                gather(getattr(config, part, None))

    for module in model.modules():
        gather(getattr(module, "config", None))
    before = [(config, config._attn_implementation_internal) for config in found.values()]
    try:
        for config in found.values():
            config._attn_implementation_internal = "regard"
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


@contextmanager
def _passes(module: Any, watcher: Watcher) -> Iterator[None]:
    """Tells the watcher when a forward pass of the module begins and ends."""

    def begin(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not watcher.inside and len(watcher.trace):
            raise ModelError(
                "watch: a trace holds one forward pass, and this is the second; watch each in a "
                "block of its own"
            )
        watcher.inside.append(module)
        names = inspect.signature(module.forward).parameters
        watcher.called(module, dict(zip(names, args, strict=False)) | kwargs)

    def end(*_: Any) -> None:  # also after an exception, that of `begin` included
        if watcher.inside and watcher.inside[-1] is module:
            watcher.inside.pop()

    with ExitStack() as undo:
        undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        undo.callback(module.register_forward_hook(end, always_call=True).remove)
        yield


def _report(kind: str, ran: set[str], trace: Trace) -> None:
    """Says which attentions ran past the watch."""
    missed = sorted(name for name in ran if not any(_covers(name, seen) for seen in trace.names))
    if missed and not len(trace):
        raise ModelError(_no_interface(kind, missed))
    if missed:
        warnings.warn(
            f"regard.watch: not in the trace, since they do not go through transformers' attention "
            f"interface: {', '.join(missed)}",
            stacklevel=4,
        )


def _covers(name: str, seen: str) -> bool:
    """Whether a module is, holds, or is part of one that was seen."""
    module = seen.partition("#")[0]
    return f"{name}.".startswith(f"{module}.") or f"{module}.".startswith(f"{name}.")
