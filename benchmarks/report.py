"""The same tables for the terminal, JSON and the README."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import machine
from benchmarks.cases import OBSERVED
from benchmarks.timing import Timing

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


@dataclass(frozen=True)
class Results:
    """Everything one run measured."""

    machine: dict[str, object]
    forward: dict[str, dict[str, Timing]]  # case -> peer -> timing
    observed: dict[str, Timing]  # statistic -> timing; "plain" among them
    memory: dict[str, int]


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]


def tables(results: Results) -> list[Table]:
    return [_forward(results.forward), _observed(results.observed), _memory(results.memory)]


def show(results: Results) -> None:
    """Print the tables."""
    console = Console()
    for table in tables(results):
        rich = RichTable(title=table.title, title_justify="left")
        for i, name in enumerate(table.head):
            rich.add_column(name, justify="right" if i else "left", no_wrap=not i)
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
    console.print(machine.sentence(results.machine), highlight=False)


def write_json(results: Results, path: Path) -> None:
    path.write_text(json.dumps(asdict(results), indent=2) + "\n")


def write_readme(results: Results, path: Path) -> None:
    """Replace what stands between the README's two markers.

    Raises:
        ValueError: the file lacks a marker.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} needs the markers {BEGIN} and {END}")
    path.write_text(f"{before}{begin}\n{markdown(results)}\n{end}{after}")


def markdown(results: Results) -> str:
    parts = [_markdown(table) for table in tables(results)]
    return "\n\n".join([*parts, machine.sentence(results.machine)])


def _markdown(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.head, rule, *table.rows)]
    return "\n".join([f"{table.title}:", "", *lines])


def _forward(cases: dict[str, dict[str, Timing]]) -> Table:
    names = list(dict.fromkeys(name for timings in cases.values() for name in timings))
    first, others = names[0], names[1:]
    head = ["L x S x d_k", f"{first}, ms"]
    for name in others:
        head += [f"{name}, ms", "ratio"]
    rows = []
    for case, timings in cases.items():
        row = [case, _ms(timings[first])]
        for name in others:
            if name in timings:
                row += [_ms(timings[name]), f"{timings[name].median / timings[first].median:.2f}"]
            else:
                row += ["-", "-"]
        rows.append(row)
    return Table(
        "Forward, float32, batch 1, 8 heads; medians, and the peer's time over regard's",
        head,
        rows,
    )


def _observed(timings: dict[str, Timing]) -> Table:
    plain = timings["plain"].median
    rows = [
        [name, _ms(timing), f"{100 * (timing.median / plain - 1):+.1f}%"]
        for name, timing in timings.items()
    ]
    title = f"What it costs to look, {OBSERVED.name}, 8 heads"
    return Table(title, ["statistics", "ms", "over plain"], rows)


def _memory(memory: dict[str, int]) -> Table:
    L = memory["L"]
    row = [f"{L:,}", _mb(memory["outputs"]), _mb(memory["raised"]), _mb(4 * L * L)]
    return Table(
        "Memory in MB, one head of 64 with lse, entropy, peak, top 4, received and map (256, 256)",
        ["L = S", "outputs", "peak above inputs and outputs", "the weights, were they stored"],
        [row],
    )


def _ms(timing: Timing) -> str:
    return f"{1000 * timing.median:.2f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
