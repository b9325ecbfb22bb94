"""How far a training is, on the error stream: a bar in a terminal, and a line per validation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from regard.translation.checkpoint import checkpoints

if TYPE_CHECKING:
    from regard.translation.train import Report, Training


SILENT = 30.0  # seconds without a line, at most, where there is no bar


class Shown:
    """Takes a training's reports."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task
        self.said = time.monotonic()

    def told(self, training: "Training") -> None:
        """What is trained on what."""
        if not training.fabric.is_global_zero:
            return
        weights = sum(x.numel() for x in training.model.parameters())
        out = f"; {training.left_out:,} longer ones left out" if training.left_out else ""
        self._say(f"{weights:,} weights; {len(training.epochs.pairs):,} sentence pairs{out}")
        if training.settings.smoothing:
            self._say("The loss is that of smoothed labels, the validation's is not.")

    def __call__(self, report: "Report") -> None:
        what = f"loss {report.loss:.3f}, {report.speed:,.0f} tokens/s"
        self.progress.update(self.task, completed=report.step, description=what)
        if report.validation is not None:
            self._say(
                f"step {report.step:,}: {what}; validation {report.validation:.3f}, "
                f"BLEU {report.bleu:.1f}, chrF {report.chrf:.1f}"
            )
        elif self.progress.disable and time.monotonic() - self.said > SILENT:
            self._say(f"step {report.step:,}: {what}")

    def _say(self, line: str) -> None:
        self.said = time.monotonic()
        self.progress.console.print(line, highlight=False)


@contextmanager
def shown(steps: int) -> Iterator[Shown]:
    """A bar of so many steps; in a file or pipe only its lines."""
    console = Console(stderr=True, soft_wrap=True)
    columns = BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn()
    with Progress(
        *columns,
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield Shown(progress, progress.add_task("", total=steps))


def stopped(training: "Training") -> str:
    """Where a training was when it was interrupted, and where it can go on."""
    saved = checkpoints(training.folder)
    later = f'--resume goes on from "{saved[-1]}"' if saved else "no checkpoint was written yet"
    return f"stopped at step {training.step:,}; {later}"
