"""What was measured, as tables and sentences for the terminal, the page and the README."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases import BACKWARD, DECODE, FORWARD, OBSERVED, UNDISTURBED
from benchmarks.commands import IMPORTS, LOOK
from benchmarks.peers import REGARD
from benchmarks.results import Results, Row
from benchmarks.timing import Timing

WORKS = {
    FORWARD: "Forward",
    BACKWARD: "Forward and backward",
    DECODE: "One query: a step of decoding",
}
README_CASES = {
    FORWARD: ("2048 x 2048 x 64", "2048 x 2048 x 64 causal", "8192 x 8192 x 64 causal"),
    BACKWARD: ("2048 x 2048 x 64", "2048 x 2048 x 64 causal"),
    DECODE: ("1 x 4096 x 64",),
}
GAP = "-"


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]


def every(results: Results) -> list[Table]:
    """All that was measured; what was not asked for gives no table."""
    found = []
    for work, title in WORKS.items():
        for precision in dict.fromkeys(row.precision for row in results.rows):
            if rows := results.chosen(work, precision):
                found += _of_peers(f"{title}, {precision}", rows, list(results.peers))
    found += [_observed(name, timings) for name, timings in results.observed.items()]
    found += [_roofline(results.rates)] if results.rates else []
    return found


def summary(results: Results) -> list[Table]:
    """The README's: the ratios that matter."""
    others = list(results.peers)[1:]
    rows = [
        [f"{row.work} {row.case}", row.precision, *_first(row), *_ratios(row, others)]
        for row in results.rows
        if row.case in README_CASES[row.work]
    ]
    head = ["L x S x d_k", "", f"{REGARD}, ms", "of the roof", *others]
    title = "Each peer's time over regard's (above 1: regard is faster), batch 1, 8 heads"
    precisions = list(results.observed)
    cost = [
        [name, *(_over(results.observed[precision], name) for precision in precisions)]
        for name in results.observed[precisions[0]]
        if name != "plain"
    ]
    looking = f"What it costs to look, over the plain forward of {OBSERVED[0].name}"
    return [Table(title, head, rows), Table(looking, ["statistics", *precisions], cost)]


def remarks(results: Results) -> list[str]:
    """What takes a sentence instead of a table."""
    found = []
    if results.memory:
        L, outputs, raised = (results.memory[name] for name in ("L", "outputs", "raised"))
        found.append(
            f"One head of 64 at L = S = {L:,} with lse, entropy, peak, top 4, received and map "
            f"(256, 256), float32: {_mb(raised)} MB at the peak above inputs and outputs "
            f"({_mb(outputs)} MB); the weights, were they stored, {_mb(4 * L * L)} MB."
        )
    if results.look:
        look, imports = results.look[LOOK].median, results.look[IMPORTS].median
        found.append(
            f"A second `{LOOK}` takes {look:.2f} s, {look - imports:.2f} s more than "
            f"`{IMPORTS}` alone ({imports:.2f} s)."
        )
    return found


def disturbance(results: Results) -> list[str]:
    """Whether the peers' threads change what regard and SDPA take."""
    among = [r for r in results.rows if r.case == UNDISTURBED.name and r.work == FORWARD]
    if not results.undisturbed or not among:
        return []
    parts = [
        f"{name} {1000 * timing.median:.2f} ms before the peers were loaded, "
        f"{_ms(among[0], name)} among them"
        for name, timing in results.undisturbed.items()
    ]
    return [f"{UNDISTURBED.name}, {UNDISTURBED.precision}: {'; '.join(parts)}."]


def unserved(results: Results) -> list[str]:
    """Every peer and case that is missing above, with the reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in results.rows:
        for name, reason in row.unserved.items():
            where = f"{row.work} {row.case} {row.precision}"
            cases.setdefault((name, reason), []).append(where)
    return [
        f"{name}: {reason} ({', '.join(where) if len(where) < 4 else f'{len(where)} rows'})"
        for (name, reason), where in cases.items()
    ]


def _of_peers(title: str, rows: list[Row], names: list[str]) -> list[Table]:
    """Ratios, medians and peaks of one kind of work."""
    first, *others = names
    compared = [[row.case, *_first(row), *_ratios(row, others)] for row in rows]
    head = ["L x S x d_k", f"{first}, ms", "of the roof", *others]
    return [
        Table(f"{title}: the peer's time over {first}'s", head, compared),
        _plain(f"{title}: medians in ms", rows, names, _ms),
        _plain(f"{title}: peak memory in MB above inputs and outputs", rows, names, _peak),
    ]


def _plain(title: str, rows: list[Row], names: list[str], cell: Callable[[Row, str], str]) -> Table:
    body = [[row.case, *(cell(row, name) for name in names)] for row in rows]
    return Table(title, ["L x S x d_k", *names], body)


def _first(row: Row) -> list[str]:
    """What regard takes, and the fraction of the roof that it reaches."""
    if REGARD not in row.cells:
        return [GAP, GAP]
    return [_ms(row, REGARD), f"{row.roof / row.cells[REGARD].seconds.median:.0%}"]


def _ratios(row: Row, names: list[str]) -> list[str]:
    ratios = [row.ratio(name, REGARD) for name in names]
    return [GAP if ratio is None else f"{ratio:.2f}" for ratio in ratios]


def _observed(precision: str, timings: dict[str, Timing]) -> Table:
    rows = [
        [name, f"{1000 * timing.median:.2f}", _over(timings, name)]
        for name, timing in timings.items()
    ]
    title = f"What it costs to look, {OBSERVED[0].name}, {precision}"
    return Table(title, ["statistics", "ms", "over plain"], rows)


def _roofline(rates: dict[str, float]) -> Table:
    rows = [[name, f"{rate / 1e9:,.1f}"] for name, rate in rates.items()]
    return Table("The roof: the best seen in this run", ["", "10⁹ a second"], rows)


def _over(timings: dict[str, Timing], name: str) -> str:
    return f"{100 * (timings[name].median / timings['plain'].median - 1):+.1f}%"


def _ms(row: Row, name: str) -> str:
    if name not in row.cells:
        return GAP
    ms = 1000 * row.cells[name].seconds.median
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.2f}"


def _peak(row: Row, name: str) -> str:
    return _mb(row.cells[name].peak) if name in row.cells else GAP


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
