"""The compiled kernels: any CPU, float32 and float64 at full speed.

bfloat16 and float16 are computed in float32: converted block by block, or, where a few queries
decode, as they are read. Where the processor has AMX, it multiplies bfloat16, weights rounded to it
too, and, with precision="high", float32 in two parts of bfloat16.
"""

from regard import _native
from regard._arrays import Array
from regard._backends import native_call
from regard._errors import OptionError
from regard._observation import Observation, Observe
from regard._problem import Problem

NAME = "native"
TILES = ("amx", "imitated")  # the instruction sets that multiply bfloat16
LONGEST = 2**31 - 1  # keys are numbered in the lanes, in float32 with 32 bits

try:
    _native.isa()
except ValueError as error:  # REGARD_ISA names one that this machine does not run
    raise OptionError(str(error)) from None


def refusal(problem: Problem, observe: Observe) -> str | None:
    """Why the kernels cannot serve, or None."""
    if problem.device != "cpu":
        return f"the kernels run on the CPU, and the arrays are on {problem.device}"
    if problem.S > LONGEST and problem.dtype != "float64":
        return f"the kernels number keys in 32 bits, and there are {problem.S}"
    return None


def kernel(problem: Problem) -> tuple[str, str]:
    """The instruction set and the kernel that would run."""
    kind = "float64" if problem.dtype == "float64" else "float32"
    score = "" if problem.score is None else "additive score, "
    if native_call.decodes(problem):
        return _native.isa(), f"{score}decoding in {kind}, split over the keys"
    if _native.isa() in TILES and not score:
        if problem.dtype == "bfloat16":
            return _native.isa(), "streaming softmax in float32, products of bfloat16 by tiles"
        if problem.dtype == "float32" and problem.precision == "high":
            return _native.isa(), "streaming softmax in float32, each product as three of bfloat16"
    converted = "" if kind == problem.dtype else f", {problem.dtype} converted block by block"
    return _native.isa(), f"{score}streaming softmax in {kind}{converted}"


def run(problem: Problem, observe: Observe) -> tuple[Array | None, Observation]:
    """The context (None without values) and what was asked about the weights."""
    if problem.needs_grad:
        from regard._backends.native_gradient import run_with_gradient

        return run_with_gradient(problem, observe)
    return native_call.forward(problem, observe)
