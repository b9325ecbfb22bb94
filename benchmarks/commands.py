"""How long a second `regard look` takes, beside the imports that it cannot do without."""

import importlib.metadata
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.timing import Timing, timing

SENTENCE = "The trophy would not fit in the suitcase because it was too large."
IMPORTS, LOOK = "import torch, transformers", "regard look"
RUNS = 5


def look(runs: int = RUNS) -> dict[str, Timing]:
    """Whole commands, interleaved, after one of each: the first unpacks the model.

    They run in the environment that regard is installed in, not in one with the peers on top.
    """
    packages = Path(str(importlib.metadata.distribution("regard").locate_file("")))
    folder_of_commands = packages.parents[2] / "bin"
    commands = {
        IMPORTS: [str(folder_of_commands / "python"), "-c", IMPORTS],
        LOOK: [str(folder_of_commands / "regard"), "look", SENTENCE, "--word", "it"],
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(runs + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                if turn:
                    samples[name].append(time.perf_counter() - start)
    return {name: timing(times) for name, times in samples.items()}
