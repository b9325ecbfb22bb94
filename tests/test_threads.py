"""The same bits on any number of threads and in any batch, and safety after a fork.

Run as a program, this file prints one digest for every array that `regard` returns.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import regard

EVERYTHING = regard.Observe(
    lse=True,
    entropy=True,
    peak=True,
    top=3,
    received="all",
    map=(5, 7),
    spans=([(0, 9), (4, 30)], [(0, 17), (17, 40)]),
    sink=True,
)


def arrays(L: int, S: int, heads: int, kv_heads: int, batch: int = 2, d: int = 64) -> list[Any]:
    """Query, key, value."""
    rng = np.random.default_rng(L + S)
    shapes = ((batch, heads, L, d), (batch, kv_heads, S, d), (batch, kv_heads, S, d))
    return [2 * rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def cases() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Work that splits in different ways: many heads, one head, few rows, many keys."""
    sinks = np.array([0.5, -1.0, 0.0, 2.0], np.float32)
    sides = regard.causal("end") & regard.window(200)
    return {
        "heads": (arrays(150, 150, 4, 2), {"mask": regard.causal(), "sinks": sinks}),
        "one head": (arrays(1031, 1031, 1, 1, batch=1), {"mask": regard.causal()}),
        "few rows": (arrays(33, 2000, 1, 1, batch=1), {}),
        "band": (arrays(300, 777, 2, 1), {"mask": sides, "softcap": 5.0}),
        "lengths": (arrays(97, 211, 4, 4), {"mask": regard.lengths([211, 64]), "sinks": sinks}),
        "additive": (
            arrays(97, 211, 4, 2),
            {"score": regard.additive(np.sin(np.arange(64.0))), "mask": regard.causal("end")},
        ),
        "float64": ([x.astype(np.float64) for x in arrays(130, 131, 2, 2)], {}),
        "bfloat16": (
            [x.astype(ml_dtypes.bfloat16) for x in arrays(330, 331, 4, 2)],
            {"mask": regard.causal()},
        ),
    }


def outputs(found: tuple[Any, regard.Observation]) -> dict[str, np.ndarray]:
    """Context and statistics under their names."""
    context, seen = found
    named = {"context": context}
    for name, value in vars(seen).items():
        parts = value if isinstance(value, tuple) else (value,)
        named |= {f"{name}{i}": part for i, part in enumerate(parts) if part is not None}
    return named


def attend(inputs: list[Any], options: dict[str, Any]) -> dict[str, np.ndarray]:
    found = regard.attention(*inputs, observe=EVERYTHING, backend="native", **options)
    return outputs(found)


def digests() -> dict[str, str]:
    return {
        f"{case}: {name}": hashlib.sha256(array.tobytes()).hexdigest()
        for case, work in cases().items()
        for name, array in attend(*work).items()
    }


def in_a_process(threads: int) -> dict[str, Any]:
    """What this file prints when it may use so many threads."""
    alone = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    runs = {threads: in_a_process(threads) for threads in (1, 2, 3, 8)}
    for threads, run in runs.items():
        assert run["threads"] in (threads, None)
        different = [name for name, bits in run["bits"].items() if runs[1]["bits"][name] != bits]
        assert different == []


def test_bits_do_not_depend_on_the_rest_of_the_batch() -> None:
    query, key, value = arrays(150, 170, 4, 2, batch=3)
    options = {"mask": regard.causal(10)}
    together = attend([query, key, value], options)
    for entry in range(3):
        for kv in range(2):
            heads = slice(2 * kv, 2 * kv + 2)
            one = slice(kv, kv + 1)
            alone = attend([query[entry, heads], key[entry, one], value[entry, one]], options)
            for name, array in alone.items():
                assert array.tobytes() == together[name][entry, heads].tobytes(), name


def test_a_row_s_bits_do_not_depend_on_the_other_heads_of_its_group() -> None:
    """Sums across rows may: rows of several heads share a strip, and a sum is cut where it ends."""
    query, key, value = arrays(150, 170, 4, 2)
    together = attend([query, key, value], {})
    for head in range(4):
        one = slice(head // 2, head // 2 + 1)
        alone = attend([query[:, head : head + 1], key[:, one], value[:, one]], {})
        for name in alone.keys() - {"received0", "map0", "spans0"}:
            assert alone[name][:, 0].tobytes() == together[name][:, head].tobytes(), name


def test_the_comparison_can_fail() -> None:
    query, key, value = arrays(150, 170, 4, 2)
    found = attend([query, key, value], {})
    changed = attend([query * np.float32(1 + 1e-6), key, value], {})
    assert found["context"].tobytes() != changed["context"].tobytes()


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_threads as t
inputs, options = t.cases()["heads"]
before = t.attend(inputs, options)
child = os.fork()
if child == 0:
    after = t.attend(inputs, options)
    os._exit(0 if all((after[n] == before[n]).all() for n in before) else 3)
again = t.attend(inputs, options)
assert all((again[n] == before[n]).all() for n in before)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

WORKERS = """
import sys
import torch
import regard
query = torch.randn(1, 4, 300, 64)

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return regard.attention(query[:, i:i + 1], query[:, i:i + 1], query[:, i:i + 1])[0, 0]

if __name__ == "__main__":
    here = regard.attention(query, query, query)[0]
    loader = torch.utils.data.DataLoader(
        Rows(), batch_size=4, num_workers=2, multiprocessing_context="fork"
    )
    sys.exit(0 if all(torch.equal(batch, here) for batch in loader) else 3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("program", [FORK, WORKERS], ids=["fork", "DataLoader"])
@pytest.mark.parametrize("threads", [2, 5])
def test_a_forked_child_attends(program: str, threads: int, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, script, Path(__file__).parent],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    bits = digests()
    running = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None
    print(json.dumps({"threads": running, "bits": bits}))
