"""Every error regard raises on purpose.

RegardError
├── ShapeError    (ValueError)    sizes that do not fit together
├── DtypeError    (TypeError)     a kind of array or number that regard does not take
├── OptionError   (ValueError)    an option outside its range, or two that exclude each other
├── BackendError  (RuntimeError)  the backend that was asked for cannot do this
├── LimitError    (MemoryError)   more was asked for at once than is sensible
├── LayerError    (LookupError)   a layer that is not there
├── FileError     (OSError)       a file that cannot be written, or is not what it should be
├── TextError     (ValueError)    a text, word or token that cannot be looked at
└── ModelError    (RuntimeError)  a model that cannot be found, loaded or watched

Each message names the argument, what came and what is needed.
"""


class RegardError(Exception):
    """Base of every error raised by regard."""


class ShapeError(RegardError, ValueError):
    """Sizes do not fit together."""


class DtypeError(RegardError, TypeError):
    """A kind of array, dtype or device that regard does not take."""


class OptionError(RegardError, ValueError):
    """An option is outside its range or excludes another."""


class BackendError(RegardError, RuntimeError):
    """The backend that was asked for cannot serve the call; the message says why."""


class LimitError(RegardError, MemoryError):
    """More of a matrix was asked for at once than is sensible."""


class LayerError(RegardError, LookupError):
    """A layer that a trace or model does not have."""


class FileError(RegardError, OSError):
    """A file cannot be written, or is not what it should be."""


class TextError(RegardError, ValueError):
    """A text, word or token that cannot be looked at."""


class ModelError(RegardError, RuntimeError):
    """A model cannot be found, loaded or watched."""
