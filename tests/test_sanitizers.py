"""`make test-deep` runs the kernels under sanitizers; here, that these can fail."""

import os
import subprocess
import sys

import pytest

TOO_FEW_VALUES = """
from dataclasses import replace
import numpy as np
from regard._backends import native
from regard._observation import Observe
from regard._problem import make_problem
query, key = np.ones((1, 64, 64), np.float32), np.ones((1, 2000, 64), np.float32)
problem = make_problem(query, key, key)
native.run(replace(problem, value=np.ones((1, 1000, 64), np.float32)), Observe())
"""


@pytest.mark.skipif(
    "asan" not in os.environ.get("LD_PRELOAD", ""), reason="this build has no sanitizers"
)
def test_a_read_past_the_end_is_found() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOO_FEW_VALUES], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
