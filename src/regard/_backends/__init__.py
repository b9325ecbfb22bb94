"""Backends turn a Problem and an Observe into a context and an Observation; here one is chosen.

A backend is a module of this package; the modules never import each other. `reference` is the
specification. It is slow and stores L x S, so it runs only when asked for by name.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from regard._arrays import Array
from regard._errors import BackendError, OptionError
from regard._observation import Observation, Observe
from regard._problem import Problem

NAMES = ("native", "blockwise", "reference")
PREFERRED = ("native", "blockwise")


class Backend(Protocol):
    """What a backend module holds."""

    NAME: str

    def refusal(self, problem: Problem, observe: Observe) -> str | None:
        """Why this backend cannot serve; None if it can."""

    def kernel(self, problem: Problem) -> tuple[str, str]:
        """The instruction set or device, and the kernel, that would run."""

    def run(self, problem: Problem, observe: Observe) -> tuple[Array | None, Observation]:
        """Context (None if the problem has no value) and what was observed."""


@dataclass(frozen=True)
class Plan:
    """Which backend, instruction set and kernel would run, and why.

    Attributes:
        backend: "native", "blockwise" or "reference".
        isa: the instruction set of a compiled kernel, or the device.
        kernel: the kernel's name.
        reason: why this backend was chosen.
    """

    backend: str
    isa: str
    kernel: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.isa}, {self.kernel}): {self.reason}"


def choose(problem: Problem, observe: Observe, backend: str | None = None) -> Plan:
    """What would run, and why.

    Raises:
        OptionError: no backend of that name.
        BackendError: the backend asked for cannot serve, or none can.
    """
    chosen, reason = pick(problem, observe, backend)
    isa, kernel = chosen.kernel(problem)
    return Plan(chosen.NAME, isa, kernel, reason)


def pick(problem: Problem, observe: Observe, backend: str | None = None) -> tuple[Backend, str]:
    """The backend that serves, and why; errors as for `choose`."""
    if backend is not None:
        if backend not in NAMES:
            raise OptionError(f"backend: got {backend!r}; needs one of {', '.join(NAMES)}")
        module, refusal = _ask(backend, problem, observe)
        if module is None:
            raise BackendError(f'backend="{backend}" cannot serve: {refusal}')
        return module, "asked for by name"
    refusals: list[str] = []
    for name in PREFERRED:
        module, refusal = _ask(name, problem, observe)
        if module is not None:
            return module, "; ".join(refusals) or "the first choice, and nothing stands against it"
        refusals.append(f"{name} cannot serve: {refusal}")
    raise BackendError(f"backend: {'; '.join(refusals)}")


def _ask(name: str, problem: Problem, observe: Observe) -> tuple[Backend | None, str | None]:
    """The backend, or None and the reason why it cannot serve."""
    module = _loaded.get(name)
    if module is None:
        try:
            module = cast(Backend, import_module(f"{__name__}.{name}"))
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            return None, "it needs torch, which is not installed"
        _loaded[name] = module
    refusal = module.refusal(problem, observe)
    return (module, None) if refusal is None else (None, refusal)


_loaded: dict[str, Backend] = {}
