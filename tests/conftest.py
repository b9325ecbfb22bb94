"""How every test runs: hypothesis profiles, and the instruction set in the report's head.

`make test` and `make test-deep` run the suite under each instruction set of the machine. Tests
that have nothing to do with the kernels are marked `once`, slow and thorough ones `deep`.
"""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from regard import _native

hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("fast")


def pytest_report_header(config: pytest.Config) -> str:
    profile = config.getoption("--hypothesis-profile") or "fast"
    return f"regard: {_native.isa()} of {', '.join(_native.isas())}; hypothesis profile {profile}"


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M and its tokenizer: causal, grouped heads. Fails where it is not installed."""
    import regard.hf

    return regard.hf.load("smollm2")


@pytest.fixture(scope="session")
def minilm() -> tuple[Any, Any]:
    """MiniLM and its tokenizer: bidirectional."""
    import regard.hf

    return regard.hf.load("minilm")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny models: more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
