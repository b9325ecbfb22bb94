"""Everything one run measured: plain data, as it goes to JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.timing import Timing


@dataclass(frozen=True)
class Cell:
    """One peer at one case: seconds, and bytes at the peak above inputs and outputs."""

    seconds: Timing
    peak: int


@dataclass(frozen=True)
class Row:
    """One case. Every peer stands either in `cells` or, with the reason, in `unserved`."""

    work: str
    precision: str
    case: str
    roof: float  # the least seconds that the machine could need
    cells: dict[str, Cell]
    unserved: dict[str, str]

    def ratio(self, name: str, to: str) -> float | None:
        """The time of one peer over another's, where both serve."""
        if name not in self.cells or to not in self.cells:
            return None
        return self.cells[name].seconds.median / self.cells[to].seconds.median


@dataclass(frozen=True)
class Results:
    machine: dict[str, object]
    peers: dict[str, str]  # the names in every row, first the one compared; what each is
    versions: dict[str, str]
    rates: dict[str, float]  # of the roofline: operations and bytes a second
    rows: list[Row]
    observed: dict[str, dict[str, Timing]]  # precision -> statistic, "plain" among them
    memory: dict[str, int]  # of one long call with every statistic
    look: dict[str, Timing]  # whole commands
    undisturbed: dict[str, Timing]  # before the peers were loaded

    def chosen(self, work: str, precision: str) -> list[Row]:
        return [row for row in self.rows if (row.work, row.precision) == (work, precision)]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
