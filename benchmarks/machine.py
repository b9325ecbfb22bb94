"""Where a measurement ran: without it a number means little."""

import os
import platform
from pathlib import Path

import numpy as np
import torch

import regard
from regard import _native

THREADS = 2  # for regard and for every peer, each by its own option
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe(threads: int = THREADS) -> dict[str, object]:
    """The processor, its relevant flags, versions, threads and the instruction set in use."""
    processor = _processor()
    flags = processor.get("flags", "").split()
    return {
        "processor": processor.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "regard": f"{regard.__version__} ({_native.isa()})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def sentence(machine: dict[str, object]) -> str:
    """The description in one line."""
    flags = machine["flags"]
    assert isinstance(flags, list)
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(flags) or 'no AVX2'}), "
        f"{machine['threads']} threads; load {machine['load']} at the start; "
        f"regard {machine['regard']}, PyTorch {machine['torch']}, "
        f"Python {machine['python']}, {machine['system']}."
    )


def _processor() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
