"""JAX: jax.nn.dot_product_attention, compiled ahead."""

import os
from typing import Any

from torch.utils.dlpack import from_dlpack

from benchmarks.cases import Case, Inputs
from benchmarks.machine import THREADS
from benchmarks.peers.ready import Ready, Tensors, room_for_weights


def dot_product_attention(case: Case, inputs: Inputs) -> Ready:
    """(1, length, heads, d); on a CPU it stores the scores."""
    room_for_weights(case)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("NPROC", str(THREADS))  # the size of XLA's pool; read at its first use
    import jax

    def forward(query: Any, key: Any, value: Any) -> Any:
        return jax.nn.dot_product_attention(query, key, value, is_causal=case.causal)

    def forward_and_backward(query: Any, key: Any, value: Any, upstream: Any) -> Any:
        context, pull_back = jax.vjp(forward, query, key, value)
        return context, *pull_back(upstream)

    taken = (*inputs.arguments, inputs.upstream) if case.gradients else inputs.arguments
    arrays = [jax.numpy.from_dlpack(tensor.transpose(1, 2).contiguous()) for tensor in taken]
    function = forward_and_backward if case.gradients else forward
    compiled = jax.jit(function).lower(*arrays).compile()

    def read(returned: Any) -> Tensors:
        results = returned if case.gradients else (returned,)
        return tuple(from_dlpack(result).transpose(1, 2) for result in results)

    copies = sum(array.nbytes for array in arrays)
    return Ready(lambda: jax.block_until_ready(compiled(*arrays)), read, copies)
