"""What the machine can do at best, measured in the same run: the roof that no call can pass.

Products: independent multiply-adds on registers (roofline.c), a thread per core used; for bfloat16
also PyTorch's matrix product, which knows the processor's tiles, whichever is faster. Reading: a
buffer as large as what a case reads, over and over, since one that fits a cache is read from there.
The exponential is not in it: a softmax has to do more than its products.
"""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.machine import THREADS

SECONDS = 0.03  # of one sample
UNIT = 512  # bytes; buffers are multiples of it and begin at one


class Roof:
    """The best rates seen so far. `look` samples them again: others may share the machine."""

    def __init__(self) -> None:
        self._best = _compiled()
        self._products = {torch.float32: 0.0, torch.bfloat16: 0.0}
        self._reading: dict[int, float] = {}
        self._matrices = torch.ones(2, 1024, 1024, dtype=torch.bfloat16)
        self._tiles = True  # whether bfloat16 products are worth another sample

    def look(self, case: Case) -> None:
        """Sample what the case needs."""
        rate = _rate(lambda thread, rounds: float(self._best.products(rounds)))
        for dtype in self._products:
            self._products[dtype] = max(self._products[dtype], rate)
        if case.dtype == torch.bfloat16:
            self._products[case.dtype] = max(self._products[case.dtype], self._tile_rate())
        size = case.bytes_read // THREADS // UNIT * UNIT or UNIT
        self._reading[case.bytes_read] = max(
            self._reading.get(case.bytes_read, 0.0), self._read_rate(size)
        )

    def seconds(self, case: Case) -> float:
        """The least time in which the case can be computed."""
        reading = case.bytes_read / self._reading[case.bytes_read]
        return max(case.operations / self._products[case.dtype], reading)

    @property
    def rates(self) -> dict[str, float]:
        """Operations and bytes a second."""
        products = {f"products {str(d)[6:]}": rate for d, rate in self._products.items()}
        sizes = sorted(self._reading)
        return products | {f"reading {size:,} bytes": self._reading[size] for size in sizes}

    def _tile_rate(self) -> float:
        if not self._tiles:
            return 0.0
        a, b = self._matrices
        small = _seconds(lambda: a[:256, :256] @ b[:256, :256])
        if 2 * 256**3 / small < self._products[torch.float32] / 4:
            self._tiles = False  # no such unit: PyTorch would take seconds for the larger one
            return 0.0
        return float(2 * 1024**3 / min(_seconds(lambda: a @ b) for _ in range(5)))

    def _read_rate(self, size: int) -> float:
        buffer = np.ones(THREADS * size + UNIT, np.uint8)
        start = -(-buffer.ctypes.data // UNIT) * UNIT

        def read(thread: int, rounds: int) -> float:
            self._best.reading(start + thread * size, size, rounds)
            return float(size * rounds)

        return _rate(read)


def _rate(work: Callable[[int, int], float]) -> float:
    """What THREADS threads do a second; `work(thread, rounds)` says how much one of them did."""
    rounds, done, taken = 1, 0.0, 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        while taken < SECONDS:
            rounds *= 2
            start = time.perf_counter()
            done = sum(pool.map(work, range(THREADS), [rounds] * THREADS))
            taken = time.perf_counter() - start
    return done / taken


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _compiled() -> ctypes.CDLL:
    """roofline.c for this very machine; ctypes lets threads run at once."""
    source = Path(__file__).with_name("roofline.c")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "roofline.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, str(source), "-o", str(built)], check=True)
        library = ctypes.CDLL(str(built))
    library.products.argtypes = [ctypes.c_long]
    library.products.restype = ctypes.c_double
    library.reading.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    library.reading.restype = ctypes.c_longlong
    return library
