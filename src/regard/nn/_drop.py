"""Dropout of vectors (Srivastava et al. 2014), whose random numbers cost no more than they must."""

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 2**16  # chances are multiples of 1 / STEPS


def dropout(x: Tensor, chance: float, training: bool) -> Tensor:
    """x with numbers set to zero by chance, the others scaled so that the mean stays.

    On the CPU, PyTorch draws a float for every number, which takes longer than the layer that made
    them (28 ms for 2,000 x 1,024 numbers, after 21 ms for the product with 256 x 1,024). Here 16
    bits decide, four times as fast: a chance of 0.1 is 0.100006, and the scale belongs to that.
    torch.func's transforms, as vmap, get PyTorch's own, which they know.
    """
    if not training or not chance:
        return x
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if traced or x.device.type != "cpu":
        return functional.dropout(x, chance)
    count, dropped = x.numel(), min(round(chance * STEPS), STEPS - 1)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = torch.empty_like(x, requires_grad=False, memory_format=torch.contiguous_format)
    torch.ge(bits.view(torch.int16)[:count].view(x.shape), dropped - STEPS // 2, out=kept)
    return x * kept.mul_(STEPS / (STEPS - dropped))
