"""python -m benchmarks.speed: measure, print, and by choice keep the tables."""

from pathlib import Path
from typing import Annotated

import torch
import typer

import regard
from benchmarks import machine, memory, peers, report
from benchmarks.cases import FORWARD, OBSERVED, Case
from benchmarks.report import Results
from benchmarks.timing import Timing, interleaved

THREADS = 2
MEMORY_L = 32768
ROOT = Path(__file__).resolve().parent.parent

STATISTICS = {
    "lse": regard.Observe(lse=True),
    "entropy": regard.Observe(entropy=True),
    "map (256, 256)": regard.Observe(map=(256, 256)),
    "peak": regard.Observe(peak=True),
    "all four": regard.Observe(lse=True, entropy=True, map=(256, 256), peak=True),
    "received": regard.Observe(received="all"),
    "top 4": regard.Observe(top=4),
}


def forward(case: Case, rounds: int) -> dict[str, Timing]:
    """The plain forward by every peer that serves the case."""
    return interleaved(peers.calls(case), rounds)


def observed(case: Case, statistics: dict[str, regard.Observe], rounds: int) -> dict[str, Timing]:
    """The forward with each statistic, beside the plain one (named "plain")."""
    query, key, value = case.inputs()

    def call(observe: regard.Observe | None) -> peers.Call:
        return lambda: regard.attention(query, key, value, observe=observe, backend="native")

    chosen = {"plain": None, **statistics}
    return interleaved({name: call(observe) for name, observe in chosen.items()}, rounds)


def main(
    json: Annotated[Path | None, typer.Option(help="Also write all numbers here.")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Put the tables in README.md.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds a table.")] = 25,
) -> None:
    """Time regard beside PyTorch in this process, and measure the memory of one long call."""
    torch.set_num_threads(THREADS)
    with torch.no_grad():
        results = Results(
            machine=machine.describe(THREADS),
            forward={case.name: forward(case, rounds) for case in FORWARD},
            observed=observed(OBSERVED, STATISTICS, rounds),
            memory=memory.measured(MEMORY_L, THREADS),
        )
    report.show(results)
    if json is not None:
        report.write_json(results, json)
    if readme:
        report.write_readme(results, ROOT / "README.md")


if __name__ == "__main__":
    typer.run(main)
