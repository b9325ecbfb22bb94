"""The heap of a process in which much comes and goes while a little stays."""

import ctypes
from typing import Any

_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; elsewhere there is none


def give_back() -> None:
    """Returns free pages to the system, those between what is in use included.

    A model allocates and frees tens of megabytes in every layer. Results that stay come to lie in
    between, so that what was freed no longer fits the next layer and the heap grows: a run that
    keeps 100 MB took 1.4 GB.
    """
    if _trim is not None:
        _trim(0)
