"""What `import regard` gives, and what it costs."""

import subprocess
import sys
import types

import pytest

import regard

pytestmark = pytest.mark.once

PUBLIC = """
    attention merge plan Plan weights Weights Memory Observe Observation
    causal window lengths padding documents prefix dense alibi relative additive
    watch Trace induction
    RegardError ShapeError DtypeError OptionError BackendError LimitError LayerError TextError
    FileError ModelError __version__
"""


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(regard.__all__) == sorted(PUBLIC.split())


def test_every_public_name_is_there() -> None:
    assert [name for name in regard.__all__ if not hasattr(regard, name)] == []


def test_nothing_else_is_in_sight() -> None:
    """Apart from the modules themselves, which Python puts there."""
    visible = {
        name
        for name, value in vars(regard).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible <= set(regard.__all__)


def test_every_public_name_is_documented() -> None:
    for name in set(regard.__all__) - {"__version__"}:
        assert getattr(regard, name).__doc__, name


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert regard.__version__ == version("regard")


def test_attention_of_arrays_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np, regard; x = np.ones((3, 2), 'f'); "
        "regard.attention(x, x, x, mask=regard.causal(), observe=regard.Observe(lse=True)); "
        "regard.weights(x, x)[1]; m = regard.Memory(); m.append(x, x); m[x]; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
