"""Where the tables go: the terminal, a page with JSON and chart beside it, the README."""

from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import chart, machine, tables
from benchmarks.peers import MEANING
from benchmarks.results import Results

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
NAME = "speed"
WIDTH = 130  # characters that the widest table needs; a narrower terminal wraps its lines
ABOUT = """\
# Speed

Written by `make bench ARGS=--readme`; the numbers with quartiles are in [speed.json](speed.json).
Every peer runs in one process, interleaved, with {threads} threads; times are medians. Before a
case is timed, all results are checked against each other. Trust ratios further than times.

![Time relative to PyTorch's SDPA](speed.svg)

The roof of a case is the time that its products, or reading its inputs, would take at the best
rates measured in the same run. The exponential is not in it. The peak is that of a second call;
inputs that a peer needs in another layout are not counted.

A small call, 1 x 16 x 64, takes microseconds, and the threads that others leave spinning change
that many times over: it is timed in runs of two, `--only decode --peer regard --peer SDPA`.
"""


def show(results: Results) -> None:
    """Print everything."""
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    for table in tables.every(results):
        rich = RichTable(title=table.title, title_justify="left")
        for i, name in enumerate(table.head):
            rich.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
    for line in [*tables.remarks(results), *tables.disturbance(results)]:
        console.print(line, markup=False)
    for line in tables.unserved(results):
        console.print(f"not measured: {line}", markup=False)
    console.print(_where(results), markup=False)


def store(results: Results, folder: Path) -> None:
    """The page, the numbers and the chart."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / f"{NAME}.json")
    (folder / f"{NAME}.md").write_text(page(results))
    (folder / f"{NAME}.svg").write_text(chart.drawn(results))


def page(results: Results) -> str:
    """All tables in Markdown."""
    names = "\n".join(f"- {name}: {MEANING.get(name, name)}" for name in list(results.peers)[1:])
    reasons = "\n".join(f"- {line}" for line in tables.unserved(results)) or "Nothing."
    rest = [*tables.remarks(results), *tables.disturbance(results), _where(results)]
    parts = [
        ABOUT.format(threads=results.machine["threads"]).rstrip(),
        f"The peers:\n\n{names}",
        *(_markdown(table) for table in tables.every(results)),
        *rest,
        f"Not measured, and why:\n\n{reasons}",
    ]
    return "\n\n".join(parts) + "\n"


def write_readme(results: Results, path: Path) -> None:
    """Replace what stands between the README's two markers.

    Raises:
        ValueError: the file lacks a marker.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} needs the markers {BEGIN} and {END}")
    parts = [
        *(_markdown(table) for table in tables.summary(results)),
        *tables.remarks(results),
        f"{_where(results)} [All tables, the chart and what could not be measured](docs/speed.md).",
    ]
    path.write_text(f"{before}{begin}\n" + "\n\n".join(parts) + f"\n{end}{after}")


def _where(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return f"{machine.sentence(results.machine)} Peers: {versions}."


def _markdown(table: tables.Table) -> str:
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.head, rule, *table.rows)]
    return "\n".join([f"{table.title}:", "", *lines])
