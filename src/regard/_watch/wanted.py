"""What a watch is to gather, and how much memory that takes."""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from regard._errors import DtypeError, LimitError, OptionError
from regard._observation import Observe
from regard._problem import Problem

KEEP = ("weights", "statistics")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Wanted:
    """The arguments of `regard.watch`, checked.

    Attributes:
        observe: with the lse.
        layers: numbers and names; None for all.
        heads: numbers, rising; None for all.
        keeps: whether queries and keys are kept.
        dtype: what these are rounded to; None where they stay as they are.
        budget: in bytes; None for no bound.
    """

    observe: Observe
    layers: frozenset[int | str] | None
    heads: tuple[int, ...] | None
    keeps: bool
    dtype: torch.dtype | None
    budget: int | None

    def layer(self, number: int, name: str) -> bool:
        return self.layers is None or not self.layers.isdisjoint({number, name})

    def check_room(self, problem: Problem, expected: int) -> None:
        """Whether a run fits into the budget, as far as its first attention tells.

        Args:
            problem: of that attention.
            expected: how many attentions the model has.

        Raises:
            LimitError: it does not; the message says what to leave out.
        """
        if self.budget is None:
            return
        count = expected if self.layers is None else len(self.layers)
        needed = count * self._bytes_a_layer(problem)
        if needed <= self.budget:
            return
        heads = problem.heads if self.heads is None else len(self.heads)
        raise LimitError(
            f"budget: {spelled(self.budget)} were given, and the trace needs {spelled(needed)} "
            f"(layers: {count}, heads: {heads}, tokens: {problem.L:,}). What fits: "
            f"{', or '.join(self._ways(problem, count, needed))}"
        )

    def _bytes_a_layer(self, problem: Problem) -> int:
        kept = _bytes_kept(problem, self.heads, self.dtype) if self.keeps else 0
        return kept + _bytes_of(self.observe, problem, self.heads)

    def _ways(self, problem: Problem, count: int, needed: int) -> Iterator[str]:
        """What to ask for instead, as far as it keeps to the budget: one change each."""
        assert self.budget is not None
        changes: dict[str, dict[str, Any]] = {}
        if self.keeps and self.dtype is None and problem.dtype in ("float32", "float64"):
            changes['dtype="bfloat16"'] = {"dtype": torch.bfloat16}
        if self.keeps:
            changes['keep="statistics"'] = {"keeps": False}
        if self.observe.map is not None:
            changes["no map"] = {"observe": replace(self.observe, map=None)}
        for way, change in changes.items():
            takes = count * replace(self, **change)._bytes_a_layer(problem)
            if takes <= self.budget:
                yield f"{way} ({spelled(takes)})"
        if most := self.budget // self._bytes_a_layer(problem):
            yield f"layers=... of at most {most}"
        yield f'budget="{spelled(1.05 * needed).replace(" ", "")}"'  # more than it is rounded by


def _bytes_kept(problem: Problem, heads: Collection[int] | None, dtype: Any) -> int:
    size = problem.query.dtype.itemsize if dtype is None else dtype.itemsize
    share = 1.0 if heads is None else len(heads) / problem.heads
    rows = problem.heads * problem.L + problem.kv_heads * problem.S
    return int(math.prod(problem.batch) * share * rows * problem.d_k * size)


def _bytes_of(observe: Observe, problem: Problem, heads: Collection[int] | None) -> int:
    L, S = problem.L, problem.S
    numbers = L * (observe.lse + observe.entropy + observe.sink)
    numbers += 3 * L * (observe.peak + (observe.top or 0))  # keys are 64-bit numbers
    numbers += S * (observe.received is not None) + math.prod(observe.map or (0,))
    if observe.spans is not None:
        sides = zip(observe.spans, (L, S), strict=True)
        numbers += math.prod(size if x is None else len(x) for x, size in sides)
    of_heads = problem.heads if heads is None else len(heads)
    return 4 * math.prod(problem.batch) * of_heads * int(numbers)


def want(observe: Any, layers: Any, heads: Any, keep: str, dtype: Any, budget: Any) -> Wanted:
    """The arguments of `regard.watch`, checked.

    Raises:
        DtypeError, OptionError: one of them is of another kind, or outside its range.
    """
    if observe is not None and not isinstance(observe, Observe):
        raise DtypeError(f"observe: got {type(observe).__name__}; needs regard.Observe(...)")
    if keep not in KEEP:
        raise OptionError(f'keep: got {keep!r}; needs "weights" or "statistics"')
    return Wanted(
        observe=replace(observe or Observe(), lse=True),
        layers=None if layers is None else frozenset(_several(layers, "layers", (int, str))),
        heads=None if heads is None else tuple(sorted(set(_several(heads, "heads", (int,))))),
        keeps=keep == "weights",
        dtype=rounding(dtype),
        budget=None if budget is None else _bytes(budget),
    )


def _several(given: Any, name: str, kinds: tuple[type, ...]) -> list[Any]:
    found = [given] if isinstance(given, (int, str)) else list(given)
    what = "numbers or names" if str in kinds else "numbers"
    for x in found:
        if not isinstance(x, kinds) or isinstance(x, bool):
            raise DtypeError(f"{name}: got {x!r}; needs {what}")
        if isinstance(x, int) and x < 0:
            raise OptionError(f"{name}: got {x}; needs {what} from 0 on")
    if not found:
        raise OptionError(f"{name}: got none; needs one or more, or None for all")
    return found


def rounding(dtype: Any) -> torch.dtype | None:
    """What queries and keys are rounded to, by name or dtype; None for as they are.

    Raises:
        OptionError: another dtype.
    """
    if dtype is None:
        return None
    for name, found in DTYPES.items():
        if dtype in (name, found):
            return found
    raise OptionError(f"dtype: got {dtype!r}; needs one of {', '.join(DTYPES)}")


def _bytes(budget: Any) -> int:
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    form = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", str(budget), re.IGNORECASE)
    if isinstance(budget, str) and form:
        return int(float(form[1]) * UNITS[form[2].upper()])
    raise OptionError(f'budget: got {budget!r}; needs a number of bytes, or "2GB", "500MB"')


def spelled(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
