"""Peak memory, from the kernel's own record, so that nothing between two samples can be missed.

`peak` is for any call of this process. `measured` is one long call in a process of its own,
without PyTorch, whose start alone would raise the peak above it:

    python -m benchmarks.memory 32768

prints {"L": ..., "raised": bytes, "outputs": bytes}.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

import regard

Returned = TypeVar("Returned")


def resident() -> int:
    """Bytes in memory now, without those freed that the C library has kept."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak(call: Callable[[], Returned]) -> tuple[int, Returned]:
    """The most bytes that this process has in memory during the call, and what it returns."""
    resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    returned = call()
    return _status("VmHWM"), returned


def measured(L: int, threads: int) -> dict[str, int]:
    """`raised` and `outputs` in bytes for L = S, one head of 64, every statistic; in a child."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", str(L)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the measured call failed:\n{done.stderr}")
    result: dict[str, int] = json.loads(done.stdout)
    return result


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not report {field}")


def _call(L: int) -> dict[str, int]:
    rng = np.random.default_rng(0)
    query, key, value = (np.empty((1, L, 64), np.float32) for _ in range(3))
    for array in (query, key, value):
        rng.standard_normal(out=array, dtype=np.float32)
    grid = min(256, L)
    observe = regard.Observe(
        lse=True, entropy=True, peak=True, top=4, received="all", map=(grid, grid)
    )
    before = _status("VmRSS")
    context, seen = regard.attention(query, key, value, observe=observe, backend="native")
    peak = _status("VmHWM")
    arrays = [context]
    seen.each(arrays.append)
    outputs = sum(array.nbytes for array in arrays)
    return {"L": L, "raised": peak - before - outputs, "outputs": outputs}


if __name__ == "__main__":
    print(json.dumps(_call(int(sys.argv[1]))))
