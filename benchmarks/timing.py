"""Medians of interleaved runs: on a shared machine only ratios from one run can be trusted."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Seconds; shorter calls are repeated within a sample, after one that does not count: the first
# after a pause finds threads asleep and takes up to twice as long.
SHORTEST_SAMPLE = 0.02
SHARE = 4.0  # seconds of one call in a table row; a longer call is sampled in fewer rounds
FEWEST = 3  # samples of a long call, where there are that many rounds
# Seconds before a sample. OpenMP's threads, regard's and PyTorch's, spin for some 7 ms after a call
# and would take a core from the next; those of the other peers were seen to stop at once.
PAUSE = 0.01


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the quartiles around it."""

    median: float
    lower: float
    upper: float
    samples: int


@dataclass(frozen=True)
class _Plan:
    """How often one call is repeated within a sample, and in how many rounds it takes part."""

    repeats: int
    samples: int

    def joins(self, turn: int, rounds: int) -> bool:
        """Whether it takes part in this round: they are spread evenly, the last among them."""
        return (turn + 1) * self.samples // rounds > turn * self.samples // rounds


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each call timed once a round, the order turning by one every round.

    Every call sees the same weather that way, and each stands after every other equally often.
    """
    plans = {name: _plan(call, rounds) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if plans[name].joins(turn, rounds):
                    samples[name].append(_sample(calls[name], plans[name].repeats))
    finally:
        gc.enable()
    return {name: timing(times) for name, times in samples.items()}


def timing(times: list[float]) -> Timing:
    """The median and the quartiles of some samples."""
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper, len(times))


def _plan(call: Callable[[], object], rounds: int) -> _Plan:
    call()
    once = _sample(call, 1)
    samples = max(FEWEST, int(SHARE / max(once, SHORTEST_SAMPLE)))
    return _Plan(max(1, int(SHORTEST_SAMPLE / once)), min(rounds, samples))


def _sample(call: Callable[[], object], repeats: int) -> float:
    time.sleep(PAUSE)
    if repeats > 1:
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
