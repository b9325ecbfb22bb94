"""Who is watching which module, and what a watched attention leaves behind.

A model's attention calls `run`. It computes the context and, for every watcher that follows the
module, adds the call to its trace.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from regard._attention import attention
from regard._bias import DenseBias, as_bias
from regard._dropout import draw
from regard._errors import LayerError, LimitError, ModelError, OptionError
from regard._masks import Sizes, padding
from regard._observation import NOTHING, Observation, Observe
from regard._problem import Problem, make_problem
from regard._watch.heap import give_back
from regard._watch.joined import first_keys, visible_keys
from regard._watch.passage import Passage, passage_of
from regard._watch.record import Record
from regard._watch.statistics import observed
from regard._watch.trace import Trace
from regard._watch.wanted import Wanted, spelled

# An encoder's keys may be as many as the decoder's: then the name tells which attention it is.
CROSS = re.compile("cross|encoder_?attn|enc_?dec", re.IGNORECASE)

MANY = 1024  # queries of a call, after which it is worth looking at what was freed

watchers: list["Watcher"] = []


def run(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    dropout: float,
    position: tuple[int, int] | None = None,
    **options: Any,
) -> Any:
    """The context of one attention of a model, recorded by whoever watches the module.

    Args:
        module: the torch module whose attention it is.
        query, key, value, dropout: as in `regard.attention`.
        position: of the first query and the first key, where the caller knows.
        options: its mask (one of regard's, or None), bias, scale, softcap and sinks; its score,
            where it is not the product.
    """
    stop = visible_keys(options["mask"], query.shape[-2], key.shape[-2])
    if stop < key.shape[-2]:  # a cache may be made longer than what has been written to it
        # Bound before the keys are cut: an offset from the "end" is that of all keys.
        sizes = Sizes(tuple(query.shape[:-3]), query.shape[-3], query.shape[-2], key.shape[-2])
        key, value = key[..., :stop, :], value[..., :stop, :]
        options["mask"] = first_keys(options["mask"].bind(sizes), stop)
        if options["bias"] is not None:
            bias = as_bias(options["bias"]).bind(sizes)
            if isinstance(bias, DenseBias):
                bias = DenseBias(bias.array[..., :stop])
            options["bias"] = bias
    following = [w for w in watchers if w.follows(module)]
    if not following:
        return attention(query, key, value, dropout=dropout, **options)
    problem = make_problem(query, key, value, dropout=dropout, **options)
    if dropout:
        problem = replace(problem, seed=draw(problem.query))
    for watcher in following:
        context = watcher.watched(module, problem, position)
    return context


class Watcher:
    """Collects one run of a model into a trace.

    Args:
        names: the model's modules by id.
        wanted: what to gather.
        expected: about how many attentions the model has.
        progress: called with every attention that was computed.
    """

    def __init__(
        self, names: Mapping[int, str], wanted: Wanted, expected: int, trace: Trace, progress: Any
    ) -> None:
        self.names = names
        self.wanted = wanted
        self.expected = expected
        self.trace = trace
        self.progress = progress
        self.inside: list[Passage] = []  # passes of models within models that are under way
        self.owner = threading.get_ident()
        self.thread: int | None = None  # which runs the outermost of them
        self.calls: Counter[str] = Counter()  # of each module, in that one
        self.numbers: dict[str, int] = {}
        self.records: dict[str, Record] = {}
        self.passes = 0
        self.reached: dict[str, tuple[int, float]] = {}  # of each host: its last pass, and where to
        self.moves: dict[str, int] = {}  # of each host: its cache's, at that pass

    def follows(self, module: Any) -> bool:
        return bool(self.inside) and id(module) in self.names and self._is_mine()

    def _is_mine(self) -> bool:
        return self.thread == threading.get_ident()

    def begin(self, host: str, module: Any, given: Mapping[str, Any]) -> None:
        """A forward pass of a module, named `host`, begins.

        Raises:
            ModelError: another thread has one under way.
        """
        if self.inside and not self._is_mine():
            raise ModelError(
                "watch: two threads run this model at once; a trace holds one run, so let one "
                "thread wait for the other, or watch a copy of the model in each"
            )
        if not self.inside:
            self.thread = threading.get_ident()
            self.passes += 1
            self.calls.clear()
        passage = passage_of(host, module, given, self.inside[-1] if self.inside else None)
        if self.reached.get(host) == (self.passes, passage.start) and passage.start:
            # It goes on within one pass of the model around it, with the same attentions.
            for name in [name for name in self.calls if name.startswith(f"{host}.")]:
                del self.calls[name]
        self.inside.append(passage)

    def end(self) -> None:
        self.inside.pop()

    def watched(self, module: Any, problem: Problem, position: tuple[int, int] | None) -> Any:
        """The context; weights and observation go to the trace."""
        passage = self.inside[-1]
        record = self._record(self.names[id(module)], passage, problem)
        if record is None:
            context, _ = observed(problem, NOTHING)
        else:
            self._go_on(passage)
            observe = record.statistics.wanted(problem.L)
            context, kept, seen = self._attend(problem, observe, passage)
            if self.wanted.heads is not None:
                at = (*(slice(None) for _ in kept.batch), list(self.wanted.heads))
                kept, seen = kept.select(at[:-1], at[-1]), seen.each(lambda x: x[at])
            column = _column(record, passage, kept, position)
            record.add(kept, seen, passage.start, column)
            self._check_budget()
            if problem.L > MANY:
                give_back()
        self.progress()
        return context

    def _record(self, module: str, passage: Passage, problem: Problem) -> Record | None:
        """Where this call goes; None if its layer is not wanted."""
        self.calls[module] += 1
        call = self.calls[module]
        name = module if call == 1 else f"{module}#{call}"
        number = self.numbers.setdefault(name, len(self.numbers))
        if not self.wanted.layer(number, name):
            return None
        if name not in self.records:
            heads = self.wanted.heads or tuple(range(problem.heads))
            if max(heads, default=0) >= problem.heads:
                raise OptionError(f"heads: got {max(heads)}; {name} has 0 to {problem.heads - 1}")
            if not self.records:
                self.wanted.check_room(problem, self.expected)
            cross = _is_cross(name, passage, problem)
            record = Record(number, name, heads, passage.sequence, cross, self.wanted)
            self.records[name] = record
            self.trace.add(record)
        return self.records[name]

    def _go_on(self, passage: Passage) -> None:
        """Whether a host's pass goes on where the one before it ended; tokens go to the trace."""
        run, reached = self.reached.get(passage.host, (0, passage.start))
        if run == self.passes and passage.start != reached:
            return
        if math.isnan(reached):
            raise ModelError(
                f"watch: {passage.host} was called a second time, and a trace holds one run; watch "
                "each call in a block of its own"
            )
        if passage.start != reached:
            raise ModelError(
                "watch: a trace holds one run, and this forward pass begins another, at position "
                f"{passage.start:,} after {reached:,} tokens; watch each in a block of its own. "
                "Generation goes on in one run with use_cache=True, without an assistant model"
            )
        if passage.start and self.moves.get(passage.host, passage.moves) != passage.moves:
            raise ModelError(
                f"watch: entries of {passage.host}'s cache changed places since the pass before; "
                "beam search, which has them do so, cannot be followed"
            )
        self.moves[passage.host] = passage.moves
        stop = passage.start + passage.shape[1] if passage.shape else math.nan
        self.reached[passage.host] = (self.passes, stop)
        self.trace.read(passage, goes_on=run == self.passes)
        if passage.within is not None:
            self._go_on(passage.within)  # whose source may be read by no attention

    def _attend(
        self, problem: Problem, observe: Observe, passage: Passage
    ) -> tuple[Any, Problem, Observation]:
        """The context for the model, and what is kept and was seen of the attention."""
        real = passage.real
        if real is None or (problem.query.shape[0], problem.L) != tuple(real.shape):
            context, seen = observed(problem, observe)
            return context, problem, seen
        # The model computes something for padded queries too, and must get just that back; but
        # they count in no statistic. So each kind has a pass, in which the other sees nothing and
        # takes no time: one pass in all.
        unpadded = _among(problem, real)
        context, seen = observed(unpadded, observe)
        of_padded, _ = observed(_among(problem, ~real), NOTHING)
        rows = real[:, None, :, None]
        return torch.where(rows, context, of_padded), unpadded, seen

    def _check_budget(self) -> None:
        if self.wanted.budget is None:
            return
        held = sum(record.nbytes for record in self.records.values())
        if held > self.wanted.budget:
            raise LimitError(
                f"budget: {spelled(self.wanted.budget)} were given, and the trace holds "
                f"{spelled(held)} by now; what was gathered so far is in it. Fewer layers or "
                'heads, dtype="bfloat16" or keep="statistics" take less'
            )

    def finish(self) -> None:
        """What can only be told at the end.

        Raises:
            LayerError: a layer was asked for that the model did not run.
        """
        met = {*self.numbers, *self.numbers.values()}
        for layer in sorted(self.wanted.layers or (), key=str):
            if self.passes and layer not in met:
                last = len(self.numbers) - 1
                raise LayerError(f"layers: got {layer!r}; the model ran attentions 0 to {last}")


def _among(problem: Problem, queries: torch.Tensor) -> Problem:
    """The problem in which no other queries (batch, L) see anything."""
    some = padding(queries.new_ones((queries.shape[0], problem.S)), queries=queries)
    bound = some.bind(problem.sizes)
    return replace(problem, mask=bound if problem.mask is None else problem.mask & bound)


def _is_cross(name: str, passage: Passage, problem: Problem) -> bool:
    """Whether the keys are another sequence's than the queries."""
    ends = passage.start + problem.L == problem.S
    if passage.source is None:
        return not ends and not passage.start
    return passage.source == problem.S and (not ends or bool(CROSS.search(name)))


def _column(
    record: Record, passage: Passage, problem: Problem, position: tuple[int, int] | None
) -> int:
    """The position of the first key of a call."""
    if record.cross:
        return record.keys.start
    if position is not None:
        return position[1]
    # The last query sees the last key, unless the keys are another sequence's.
    return max(passage.start + problem.L - problem.S, 0) if passage.start else 0
