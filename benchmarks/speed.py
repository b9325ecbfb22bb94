"""python -m benchmarks.speed: measure, print and keep the tables."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

import regard
from benchmarks import commands, machine, memory, peers, report
from benchmarks.cases import (
    BACKWARD,
    CASES,
    DECODE,
    DTYPES,
    FORWARD,
    OBSERVED,
    REHEARSED,
    SMALL,
    UNDISTURBED,
    Case,
)
from benchmarks.machine import THREADS
from benchmarks.peers.ready import Peer
from benchmarks.results import Cell, Results, Row
from benchmarks.roofline import Roof
from benchmarks.timing import Timing, interleaved

MEMORY_L = 32768
ROOT = Path(__file__).resolve().parent.parent
PARTS = (FORWARD, BACKWARD, DECODE, "observed", "memory", "look")
PRECISIONS = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)

STATISTICS = {
    "lse": regard.Observe(lse=True),
    "entropy": regard.Observe(entropy=True),
    "map (256, 256)": regard.Observe(map=(256, 256)),
    "peak": regard.Observe(peak=True),
    "all four": regard.Observe(lse=True, entropy=True, map=(256, 256), peak=True),
    "received": regard.Observe(received="all"),
    "top 4": regard.Observe(top=4),
}


def compared(case: Case, chosen: Mapping[str, Peer], rounds: int, roof: Roof) -> Row:
    """One case by every peer that serves it; its roof is known at the end of the run."""
    served, unserved = peers.serve(case, chosen)
    roof.look(case)
    timings = interleaved({name: one.ready.call for name, one in served.items()}, rounds)
    roof.look(case)
    cells = {name: Cell(timings[name], one.peak) for name, one in served.items()}
    return Row(case.work, case.precision, case.name, 0.0, cells, unserved)


def observed(case: Case, statistics: dict[str, regard.Observe], rounds: int) -> dict[str, Timing]:
    """The forward with each statistic, beside the plain one (named "plain")."""
    query, key, value = case.inputs().arguments

    def call(observe: regard.Observe | None) -> Callable[[], object]:
        return lambda: regard.attention(query, key, value, observe=observe, backend="native")

    chosen = {"plain": None, **statistics}
    return interleaved({name: call(observe) for name, observe in chosen.items()}, rounds)


def measure(
    parts: Collection[str], precisions: Collection[str], names: list[str], rounds: int
) -> Results:
    """Everything that was asked for."""
    described = machine.describe()
    chosen = {name: peers.PEERS[name] for name in names}
    crowded = not {*names} <= {peers.REGARD, peers.SDPA}
    cases = [
        case
        for case in CASES
        if case.work in parts
        and case.precision in precisions
        and not (crowded and case.name == SMALL.name)
    ]
    undisturbed: dict[str, Timing] = {}
    if UNDISTURBED in cases:
        alone = {name: peer for name, peer in chosen.items() if name in (peers.REGARD, peers.SDPA)}
        served, _ = peers.serve(UNDISTURBED, alone)
        undisturbed = interleaved({name: one.ready.call for name, one in served.items()}, rounds)
    for case in REHEARSED if cases else ():
        # What a peer loads at its first use is no part of the memory that a case needs.
        peers.serve(case, chosen)
    roof = Roof()
    rows = []
    for case in cases:
        typer.echo(f"{case.work} {case.name} {case.precision}", err=True)
        rows.append(compared(case, chosen, rounds, roof))
    return Results(
        machine=described,
        peers={name: peers.MEANING[name] for name in names},
        versions=peers.versions(),
        rates=roof.rates,
        rows=[replace(row, roof=roof.seconds(c)) for row, c in zip(rows, cases, strict=True)],
        observed={
            case.precision: observed(case, STATISTICS, rounds)
            for case in OBSERVED
            if "observed" in parts and case.precision in precisions
        },
        memory=memory.measured(MEMORY_L, THREADS) if "memory" in parts else {},
        look=commands.look() if "look" in parts else {},
        undisturbed=undisturbed,
    )


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PRECISIONS)}.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(peers.PEERS)}.")] = None,
    out: Annotated[Path, typer.Option(help="Where the page, JSON and chart go.")] = ROOT
    / "build"
    / "bench",
    readme: Annotated[
        bool, typer.Option("--readme", help="Write README.md and docs/speed.* too.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds a table row.")] = 25,
) -> None:
    """Time regard beside every peer that is installed, in this process; name those that are not."""
    parts = _chosen("--only", only, PARTS)
    precisions = _chosen("--dtype", dtype, PRECISIONS)
    names = _chosen("--peer", peer, tuple(peers.PEERS))
    if readme and (only or dtype or peer):
        raise typer.BadParameter("--readme needs every table: leave out --only, --dtype and --peer")
    torch.set_num_threads(THREADS)
    results = measure(parts, precisions, names, rounds)
    report.show(results)
    report.store(results, out)
    if readme:
        report.store(results, ROOT / "docs")
        report.write_readme(results, ROOT / "README.md")


def _chosen(option: str, wanted: list[str] | None, known: tuple[str, ...]) -> list[str]:
    """What was asked for, in the order of what there is; all of it if nothing was.

    Raises:
        typer.BadParameter: something unknown was asked for.
    """
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise typer.BadParameter(f"{option} {unknown[0]}: there is {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


if __name__ == "__main__":
    typer.run(main)
