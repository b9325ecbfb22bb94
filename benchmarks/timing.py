"""Medians of interleaved runs: on a shared machine only ratios from one run can be trusted."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SHORTEST_SAMPLE = 0.005  # seconds; shorter calls are repeated within a sample


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the quartiles around it."""

    median: float
    lower: float
    upper: float


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each call timed once a round, the order turning by one every round.

    Every call sees the same weather that way, and each stands after every other equally often.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_sample(calls[name], repeats[name]))
    finally:
        gc.enable()
    return {name: _timing(times) for name, times in samples.items()}


def _repeats(call: Callable[[], object]) -> int:
    call()
    return max(1, int(SHORTEST_SAMPLE / _sample(call, 1)))


def _sample(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _timing(times: list[float]) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper)
