"""A translator that one can look into: trained here, aligned word by word."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.translation.translator import Translation, Translator

__all__ = ["Translation", "Translator"]


def __getattr__(name: str) -> Any:
    """The public names, when they are asked for: the command line's help is quick without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from regard.translation import translator

    return getattr(translator, name)
