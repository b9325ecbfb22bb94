"""regard's scaled_dot_product_attention beside PyTorch's own on the same input.

Both are measured against PyTorch's in float64. regard may be wrong by twice as much, and by three
times in gradients of bfloat16 and float16; or, where PyTorch is luckier, by FLOOR of the largest
result. PyTorch has two ways on a CPU, chosen by details of the input: one stores the weights, and
one is fused, whose gradients in 16 bits are far less exact. The worse of them is what counts.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as their
from torch import Tensor

import regard
import regard.nn.functional as our

# What the kernels are wrong by in float32 (and, as tests of gradients allow, in float64); of the
# halves what rounding a result costs at most.
FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
HALVES = (torch.bfloat16, torch.float16)

Attend = Callable[..., Any]


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def qkv(
    *lead: int,
    L: int = 7,
    S: int = 9,
    d_k: int = 8,
    d_v: int = 8,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    return tensors((*lead, L, d_k), (*lead, S, d_k), (*lead, S, d_v), dtype=dtype)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensors(shape, dtype=dtype)[0]


def results(attend: Attend, arrays: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """The context and the gradients of query, key, value and, if one is added, of the mask."""
    mask = options.get("attn_mask")
    learned = [mask] if mask is not None and mask.is_floating_point() else []
    inputs = [x.detach().requires_grad_() for x in (*arrays, *learned)]
    options = {**options, **({"attn_mask": inputs[3]} if learned else {})}
    context = attend(*inputs[:3], **options)
    towards = torch.linspace(-1, 2, context.numel()).reshape(context.shape).cos()
    return [context.detach(), *torch.autograd.grad((context * towards.to(context)).sum(), inputs)]


def doubled(x: Any) -> Any:
    return x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x


def fused(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """PyTorch's, made to take the fused way where there is one for such an attention."""
    if q.shape[-1] != v.shape[-1] or options.keys() - {"is_causal", "scale", "dropout_p"}:
        return their.scaled_dot_product_attention(q, k, v, **options)
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
    flat = (
        x.expand(*lead, *x.shape[-2:]).reshape(1, lead.numel(), *x.shape[-2:]) for x in (q, k, v)
    )
    return their.scaled_dot_product_attention(*flat, **options).reshape(*lead, *q.shape[-2:])


def assert_as_good(
    got: list[Tensor], torchs: list[list[Tensor]], exact: list[Tensor], factor: float = 2
) -> None:
    greatest = max((float(x.norm()) for x in exact if x.numel()), default=0.0)
    for n, (x, z) in enumerate(zip(got, exact, strict=True)):
        assert all((x.shape, x.dtype) == (ways[n].shape, ways[n].dtype) for ways in torchs)
        theirs = max(float((ways[n].double() - z).norm()) for ways in torchs)
        allowed = max(factor, 3) if n and x.dtype in HALVES else factor
        bound = max(allowed * theirs, FLOOR[x.dtype] * greatest)
        assert float((x.double() - z).norm()) <= bound


def check(*arrays: Tensor, **options: Any) -> None:
    """regard's context and gradients are as good as PyTorch's."""
    exact = {name: doubled(x) for name, x in options.items()}
    ways = (their.scaled_dot_product_attention, fused)
    assert_as_good(
        results(our.scaled_dot_product_attention, list(arrays), options),
        [results(way, list(arrays), options) for way in ways],
        results(their.scaled_dot_product_attention, [x.double() for x in arrays], exact),
    )


# What tests of the operators have in common.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": noise(7, 9) < 0.7},
    "mask to add": {"attn_mask": noise(3, 7, 9)},
    "dropout": {"dropout_p": 0.3},
    "scale": {"scale": 0.3},
}
EVERYTHING = regard.Observe(
    lse=True, entropy=True, peak=True, top=2, received="all", map=(2, 3), spans=([[0, 2]], None)
)


def learning(*arrays: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in arrays]


def gradients(attend: Callable[..., Tensor], arrays: list[Tensor], **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    context = attend(*arrays, **options)
    return [context, *torch.autograd.grad(context.sin().sum(), arrays)]


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | float = 0) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v
