"""Options of models and trainings, checked before anything is computed."""

import math
from numbers import Integral, Real
from typing import Any

from regard._errors import OptionError


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises OptionError: it is no whole number, or outside its range."""
    right = isinstance(value, Integral) and not isinstance(value, bool)
    if not right or value < least or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise OptionError(f"{name}: got {value!r}; needs a whole number, at least {least}{limit}")


def number(name: str, value: Any, needs: str, least: float, below: float = math.inf) -> None:
    """Raises OptionError: it is no number from `least` on and less than `below`."""
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= float(value) < below:
        raise OptionError(f"{name}: got {value!r}; needs {needs}")


def share(name: str, value: Any) -> None:
    """Raises OptionError: it is not from 0 to less than 1."""
    number(name, value, "0 or more, and less than 1", 0.0, 1.0)


def positive(name: str, value: Any) -> None:
    """Raises OptionError: it is not above 0, or infinite."""
    number(name, value, "a number above 0", math.ulp(0.0))
