"""regard: compute attention at the speed of fused kernels, and look at its weights."""

import typing as _typing

from regard._attention import attention, plan
from regard._backends import Plan
from regard._bias import alibi, relative
from regard._errors import (
    BackendError,
    DtypeError,
    FileError,
    LayerError,
    LimitError,
    ModelError,
    OptionError,
    RegardError,
    ShapeError,
    TextError,
)
from regard._masks import causal, dense, documents, lengths, padding, prefix, window
from regard._memory import Memory
from regard._merge import merge
from regard._observation import Observation, Observe
from regard._score import additive
from regard._weights import Weights, weights

if _typing.TYPE_CHECKING:
    from regard._watch import Trace, induction, watch

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "DtypeError",
    "FileError",
    "LayerError",
    "LimitError",
    "Memory",
    "ModelError",
    "Observation",
    "Observe",
    "OptionError",
    "Plan",
    "RegardError",
    "ShapeError",
    "TextError",
    "Trace",
    "Weights",
    "__version__",
    "additive",
    "alibi",
    "attention",
    "causal",
    "dense",
    "documents",
    "induction",
    "lengths",
    "merge",
    "padding",
    "plan",
    "prefix",
    "relative",
    "watch",
    "weights",
    "window",
]


def __getattr__(name: str) -> _typing.Any:
    """What watches models, when it is asked for: it is half of what the import would take."""
    if name not in ("Trace", "induction", "watch"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from regard import _watch

    return getattr(_watch, name)
