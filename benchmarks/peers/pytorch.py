"""regard itself, and what PyTorch offers: peers that take torch's tensors as they are."""

from collections.abc import Callable

import torch

import regard
import regard.nn.functional
from benchmarks.cases import Case, Inputs
from benchmarks.peers.ready import (
    Ready,
    Tensors,
    UnservedError,
    room_for_weights,
    without_gradients,
)

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def regard_native(case: Case, inputs: Inputs) -> Ready:
    """What takes the place of PyTorch's own, once it is sure that the kernels serve."""
    plan = regard.plan(*inputs.arguments, mask=regard.causal() if case.causal else None)
    if plan.backend != "native":
        raise UnservedError(f"would run {plan}")
    attend = regard.nn.functional.scaled_dot_product_attention
    return _ready(case, inputs, lambda q, k, v: attend(q, k, v, is_causal=case.causal))


def sdpa(case: Case, inputs: Inputs) -> Ready:
    """PyTorch's fused kernel, which keeps no weights."""
    fused = torch.nn.functional.scaled_dot_product_attention
    return _ready(case, inputs, lambda q, k, v: fused(q, k, v, is_causal=case.causal))


def eager(case: Case, inputs: Inputs) -> Ready:
    """The formula with its weights stored: what one falls back to when one must look."""
    room_for_weights(case)
    hidden = torch.ones(case.L, case.S, dtype=torch.bool).triu(1) if case.causal else None

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(query, key.transpose(-2, -1)) * case.d**-0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return torch.matmul(scores.softmax(-1), value)

    return _ready(case, inputs, attend)


def flex(case: Case, inputs: Inputs) -> Ready:
    """FlexAttention, compiled for this case alone; compiling is not timed."""
    without_gradients(case)
    from torch.nn.attention import flex_attention as module

    # Every case counts as a recompilation, and after eight it would run uncompiled, unasked.
    torch._dynamo.reset()
    compiled = torch.compile(module.flex_attention, fullgraph=True, dynamic=False)
    mask = None
    if case.causal:
        mask = module.create_block_mask(
            lambda batch, head, i, j: i >= j, None, None, case.L, case.S, device="cpu"
        )
    return _ready(case, inputs, lambda q, k, v: compiled(q, k, v, block_mask=mask))


def _ready(case: Case, inputs: Inputs, attend: Attend) -> Ready:
    if not case.gradients:
        return Ready(lambda: attend(*inputs.arguments), lambda context: (context,))
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs.arguments)

    def forward_and_backward() -> Tensors:
        context = attend(*leaves)
        if not context.requires_grad:
            raise UnservedError("has no gradients")
        return context.detach(), *torch.autograd.grad(context, leaves, inputs.upstream)

    return Ready(forward_and_backward, tuple)
