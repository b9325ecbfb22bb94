"""Who computes it. A peer is one function: from a case and its inputs to a call without arguments
that returns the context, or None for a case it cannot serve. Add it to PEERS and it is in every
table; the first is the one that the others are compared with."""

from collections.abc import Callable

import torch

import regard
from benchmarks.cases import Case

Call = Callable[[], torch.Tensor]
Peer = Callable[[Case, torch.Tensor, torch.Tensor, torch.Tensor], Call | None]

MOST_WEIGHTS = 1 << 30  # bytes; the eager formula holds several copies of them at a time


def regard_native(
    case: Case, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Call | None:
    """The native kernels; `backend` is named so that no other can stand in unnoticed."""
    mask = regard.causal() if case.causal else None

    def call() -> torch.Tensor:
        context: torch.Tensor = regard.attention(query, key, value, mask=mask, backend="native")
        return context

    return call


def torch_sdpa(
    case: Case, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Call | None:
    """PyTorch's fused kernel, which keeps no weights."""
    fused = torch.nn.functional.scaled_dot_product_attention
    return lambda: fused(query, key, value, is_causal=case.causal)


def torch_eager(
    case: Case, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Call | None:
    """The formula with its weights stored: what one falls back to when one must look."""
    if case.bytes_of_weights > MOST_WEIGHTS:
        return None
    hidden = torch.ones(case.L, case.L, dtype=torch.bool).triu(1) if case.causal else None

    def call() -> torch.Tensor:
        scores = torch.matmul(query, key.transpose(-2, -1)) * case.d**-0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return torch.matmul(scores.softmax(-1), value)

    return call


PEERS: dict[str, Peer] = {
    "regard": regard_native,
    "PyTorch SDPA": torch_sdpa,
    "eager, weights stored": torch_eager,
}


def calls(case: Case) -> dict[str, Call]:
    """Every peer that serves the case, after checking that all compute the same.

    Raises:
        AssertionError: a peer's context differs from the first peer's.
    """
    inputs = case.inputs()
    found = {name: peer(case, *inputs) for name, peer in PEERS.items()}
    serving = {name: call for name, call in found.items() if call is not None}
    first, *others = serving.values()
    expected = first()
    for other in others:
        torch.testing.assert_close(other(), expected, rtol=1e-3, atol=1e-4)
    return serving
