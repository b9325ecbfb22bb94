"""Who is watching which module, and what a watched attention leaves behind.

A model's attention calls `run`. It computes the context and, for every watcher that follows the
module, adds a layer to its trace. Watchers are found by module, not by thread, so that a model is
watched in whichever thread it runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from regard._arrays import restore
from regard._attention import attention
from regard._backends import pick
from regard._masks import padding
from regard._observation import Observation, Observe
from regard._problem import Problem, make_problem
from regard._watch.trace import Layer, Trace
from regard._weights import Weights

watchers: list["Watcher"] = []


def run(module: Any, query: Any, key: Any, value: Any, dropout: float, **options: Any) -> Any:
    """The context of one attention of a model, recorded by whoever watches the module.

    Args:
        module: the torch module whose attention it is.
        query, key, value, dropout: as in `regard.attention`.
        options: its mask (one of regard's, or None), bias, scale, softcap and sinks.
    """
    following = [w for w in watchers if w.follows(module)]
    if not following:
        return attention(query, key, value, dropout=dropout, **options)
    for watcher in following:
        context = watcher.watched(module, query, key, value, dropout, options)
    return context


class Watcher:
    """Collects one forward pass of a model into a trace.

    Args:
        names: the model's modules by id.
        observe: what to gather; the lse is added.
    """

    def __init__(self, names: Mapping[int, str], observe: Observe, trace: Trace) -> None:
        self.names = names
        self.observe = replace(observe, lse=True)
        self.trace = trace
        self.noted = False
        self.inside: list[Any] = []  # models within models whose forward passes are under way
        self.real: Any = None  # (batch, L), True where a query is no padding; None where all are

    def follows(self, module: Any) -> bool:
        return bool(self.inside) and id(module) in self.names

    def called(self, model: Any, given: Mapping[str, Any]) -> None:
        """Notes the tokens that a model is called with, and which of them are padding.

        The first model that is called with tokens counts: those within it get the same.
        """
        ids: Any = given.get("input_ids")
        mask: Any = given.get("attention_mask")
        inputs = ids if ids is not None else given.get("inputs_embeds")
        if self.noted or inputs is None:
            return
        self.noted = True
        self.trace.token_ids, self.trace.attention_mask = ids, mask
        # An encoder-decoder's padding is that of some of its attentions only.
        if getattr(model.config, "is_encoder_decoder", False) or getattr(mask, "ndim", 0) != 2:
            return
        real = mask[:, -inputs.shape[1] :].bool()
        if real.shape == inputs.shape[:2] and not bool(real.all()):
            self.real = real

    def watched(
        self,
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        dropout: float,
        options: dict[str, Any],
    ) -> Any:
        """The context; weights and observation go to the trace."""
        real = self.real
        if real is None or query.shape[::2] != real.shape:
            context, seen = attention(
                query, key, value, dropout=dropout, observe=self.observe, **options
            )
            kept = _kept(query, key, options)
        else:
            # The model computes something for padded queries too, and must get just that back;
            # but they count in no statistic, so that these need a pass of their own.
            context = attention(query, key, value, dropout=dropout, **options)
            unpadded = padding(real.new_ones((key.shape[0], key.shape[2])), queries=real)
            mask = unpadded if options["mask"] is None else options["mask"] & unpadded
            kept = _kept(query, key, options | {"mask": mask})
            seen = self._look(kept)
        seen = seen.each(lambda x: x.detach())
        self.trace.add(Layer(self.names[id(module)], Weights(kept, seen.lse), seen))
        return context

    def _look(self, problem: Problem) -> Observation:
        self.observe.check(problem.L, problem.S)
        backend, _ = pick(problem, self.observe)
        seen = backend.run(problem, self.observe)[1]
        return seen.each(lambda x: restore(x, problem.query))


def _kept(query: Any, key: Any, options: dict[str, Any]) -> Problem:
    """The problem as it stands now, whatever becomes of the model's tensors."""
    bias, sinks = (None if x is None else _as_it_is(x) for x in (options["bias"], options["sinks"]))
    return make_problem(
        _as_it_is(query), _as_it_is(key), None, **options | {"bias": bias, "sinks": sinks}
    )


def _as_it_is(x: Any) -> Any:
    """The tensor, without its graph; a copy if it may be overwritten.

    What was written in place once (the buffers of a static cache, parameters) may be written
    again. Tensors of inference mode do not say whether they were.
    """
    overwritten = x.is_inference() or x._version > 0
    return x.detach().clone() if overwritten else x.detach()
