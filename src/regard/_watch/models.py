"""A model prepared to be watched, and put back; what it has of attention, and what was missed."""

import importlib.metadata
import importlib.util
import inspect
import re
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

import torch

from regard._errors import LayerError, ModelError
from regard._watch.active import Watcher, watchers
from regard._watch.functions import intercepted
from regard._watch.trace import Trace
from regard._watch.wanted import Wanted
from regard.nn._reading import Reader

LOOKS_LIKE_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
MOST_LISTED = 3
COMPILER = "torch._dynamo"


@contextmanager
def watching(model: Any, wanted: Wanted, progress: bool, tokenizer: Any) -> Iterator[Trace]:
    """The body of `regard.watch`, whose arguments these are."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"model: got {type(model).__name__}; needs a torch module")
    hosts, names = _hosts(model), _names(model)
    lookalikes = {
        names[id(module)]: module
        for module in model.modules()
        if LOOKS_LIKE_ATTENTION.search(type(module).__name__) and module not in hosts
    }
    _check(model, hosts, lookalikes, wanted, names)
    trace, count = Trace(tokenizer, _described(model)), len(_innermost(lookalikes))
    ran: set[str] = set()
    with ExitStack() as undo:
        step = undo.enter_context(_bar(progress, count))
        watcher = Watcher(names, wanted, count, trace, step)
        for module in {model, *hosts, *(m for m in model.modules() if isinstance(m, Reader))}:
            undo.enter_context(_passes(module, names[id(module)], watcher))
        for name, module in lookalikes.items():
            handle = module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
            undo.callback(handle.remove)
        undo.enter_context(_switched(model, bool(hosts)))
        undo.enter_context(_uncompiled())
        functions = None
        if _may_call_functions(model, hosts, lookalikes):
            functions = undo.enter_context(intercepted(model, names))
        watchers.append(watcher)
        undo.callback(watchers.remove, watcher)
        yield trace
        _check_unchanged(model, names, hosts)
    watcher.finish()
    if watcher.passes:
        _report(names[id(model)], ran, functions.by_hand if functions else set(), watcher)


def _names(model: Any) -> dict[int, str]:
    """The modules of a model by id; the model itself has no name but its class's."""
    return {id(module): name or type(module).__name__ for name, module in model.named_modules()}


def _hosts(model: Any) -> list[Any]:
    """The transformers models in a model, itself included."""
    if not any(hasattr(module, "config") for module in model.modules()):
        return []
    try:
        from transformers import PreTrainedModel

        from regard._watch.interface import register
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        return []
    register()
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def _goes_through(host: Any) -> bool:
    """Whether the attentions of a model of transformers go through its attention interface."""
    return bool(host._can_set_attn_implementation())


def _check(
    model: Any,
    hosts: Collection[Any],
    lookalikes: Collection[str],
    wanted: Wanted,
    names: dict[int, str],
) -> None:
    """What can be told before the model runs."""
    if hosts and not lookalikes:
        raise ModelError(f"model: {type(model).__name__} has no attention to watch")
    modules = {id(module) for module in model.modules()}
    for watcher in watchers:
        if watcher.owner != threading.get_ident() and not modules.isdisjoint(watcher.names):
            raise ModelError(
                "model: is being watched by another thread; wait for that to end, or watch a copy"
            )
    known = set(names.values())
    for layer in wanted.layers or ():
        if isinstance(layer, str) and layer.partition("#")[0] not in known:
            listed = _listed(sorted(lookalikes))
            raise LayerError(f'layers: the model has no module "{layer}"; attentions are {listed}')


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Keeps torch.compile from compiling: what runs compiled runs past hooks and modes.

    Where nothing was compiled yet, PyTorch's compiler is not even loaded, which takes seconds; if
    it is while the context lasts, it is told then.
    """
    with ExitStack() as undo:

        def tell() -> None:
            undo.enter_context(torch.compiler.set_stance("force_eager"))

        if COMPILER in sys.modules:
            tell()
        else:
            finder = _Awaiting(COMPILER, tell)
            sys.meta_path.insert(0, finder)
            undo.callback(finder.leave)
        yield


class _Awaiting(MetaPathFinder):
    """Calls back once a module has been imported."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        self.leave()
        spec = importlib.util.find_spec(fullname)  # of the other finders
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                self.then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _may_call_functions(model: Any, hosts: Collection[Any], lookalikes: dict[str, Any]) -> bool:
    """Whether attention may run otherwise than through transformers' interface."""
    if model not in hosts or not all(map(_goes_through, hosts)):
        return True
    return any(isinstance(module, torch.nn.MultiheadAttention) for module in lookalikes.values())


def _innermost(names: Collection[str]) -> list[str]:
    """Without those that hold another."""
    return [a for a in names if not any(b.startswith(f"{a}.") for b in names)]


def _described(model: Any) -> dict[str, str]:
    """What a trace says of the model that it is of."""
    told = {"class": type(model).__name__}
    config = getattr(model, "config", None)
    for key, name in (("name", "_name_or_path"), ("revision", "_commit_hash")):
        if value := getattr(config, name, None):
            told[key] = str(value)
    for package in ("regard", "torch", "transformers"):
        try:
            told[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return told


@contextmanager
def _bar(progress: bool, count: int) -> Iterator[Callable[[], None]]:
    """What is to be called after each attention, and shows a bar if that is wanted."""
    if not progress:
        yield lambda: None
        return
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with tqdm(total=count or None, desc="Watching", unit=" attentions", leave=False) as bar:
        yield lambda: bar.update()


@contextmanager
def _switched(model: Any, has_hosts: bool) -> Iterator[None]:
    """The model with "regard" in each of its configurations, and then what each held before."""
    if not has_hosts:
        yield
        return
    configs = _configs(model)
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = "regard"
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def _configs(model: Any) -> list[Any]:
    from transformers import PreTrainedConfig

    found: dict[int, Any] = {}

    def gather(config: Any) -> None:
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            for part in config.sub_configs:
                gather(getattr(config, part, None))

    for module in model.modules():
        gather(getattr(module, "config", None))
    return list(found.values())


@contextmanager
def _passes(module: Any, name: str, watcher: Watcher) -> Iterator[None]:
    """Tells the watcher when a forward pass of the module begins and ends."""
    names = list(inspect.signature(module.forward).parameters)
    begun: list[bool] = []

    def begin(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begun.append(False)
        watcher.begin(name, module, dict(zip(names, args, strict=False)) | kwargs)
        begun[-1] = True

    def end(*_: Any) -> None:  # also after an exception, that of `begin` included
        if begun and begun.pop():
            watcher.end()

    with ExitStack() as undo:
        undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        undo.callback(module.register_forward_hook(end, always_call=True).remove)
        yield


def _check_unchanged(model: Any, names: dict[int, str], hosts: Collection[Any]) -> None:
    now = _names(model)
    changed = sorted({name for key, name in now.items() ^ names.items()})
    if changed:
        raise ModelError(
            f"model: was changed while it was watched, at {_listed(changed)}; the trace may lack "
            "attentions that ran there"
        )
    if hosts and any(c._attn_implementation_internal != "regard" for c in _configs(model)):
        raise ModelError(
            "model: its attention implementation was changed while it was watched; the trace lacks "
            "what ran after that"
        )


def _report(whole: str, ran: set[str], by_hand: set[str], watcher: Watcher) -> None:
    """Says which attentions ran past the watch.

    Args:
        whole: the name of the model itself, which holds all that was met.
        ran: what looks like attention and ran.
        by_hand: what took a softmax itself.
    """
    met = [name.partition("#")[0] for name in watcher.numbers]
    ran = (ran - {whole} if met else ran) | by_hand
    missed = sorted(name for name in ran if not any(_covers(name, seen) for seen in met))
    reason = "do not go through transformers' attention interface, nor call PyTorch's functions"
    if not met:
        if not missed:
            raise ModelError(f"model: {whole} ran no attention that can be watched")
        raise ModelError(
            f"model: the attentions of {whole} {reason}, so they cannot be watched: "
            f"{_listed(missed)}"
        )
    if missed:
        warnings.warn(
            f"regard.watch: not in the trace, since they {reason}: {', '.join(missed)}",
            stacklevel=6,
        )


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:MOST_LISTED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def _covers(name: str, seen: str) -> bool:
    """Whether a module is, holds, or is part of one that was seen."""
    return f"{name}.".startswith(f"{seen}.") or f"{seen}.".startswith(f"{name}.")
