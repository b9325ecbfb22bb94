"""Which weights dropout leaves: a function of the seed, the matrix, the query and the key alone.

The kernels compute the same (kernels/dropout.h), so that every backend drops the same weights and
a backward pass finds again what the forward pass dropped, with nothing stored.
"""

from typing import Any

import numpy as np

from regard._arrays import Array, is_torch

ALL = 0xFFFFFFFF


def draw(like: Array) -> int:
    """A seed of 62 bits from torch's generator for tensors, else from NumPy's, which
    `torch.manual_seed` and `numpy.random.seed` govern."""
    if is_torch(like):
        import torch

        return int(torch.randint(2**62, (), device="cpu"))
    return int(np.random.randint(2**62, dtype=np.int64))


def kept(seed: int, chance: float, matrix: Array, i: Array, j: Array) -> Any:
    """Booleans, False where a weight is dropped.

    Args:
        matrix: number of (*batch, head), counted in their order; i: of the query; j: of the key.
            int64, of shapes that broadcast.
    """
    row = _mixed(_mixed(seed & ALL) ^ matrix), _mixed(_mixed(seed >> 32) ^ matrix)
    first, second = (_mixed(x ^ i) for x in row)
    x = (first + j * 0x9E3779B9) & ALL
    x = ((x ^ x >> 16) * 0x85EBCA6B) & ALL
    x = x ^ second
    x = ((x ^ x >> 13) * 0xC2B2AE35) & ALL
    return (x ^ x >> 16) >= min(int(chance * 2**32), ALL)


def _mixed(x: Any) -> Any:
    """A bijection of 32 bits (the finaliser of MurmurHash3)."""
    x = ((x ^ x >> 16) * 0x85EBCA6B) & ALL
    x = ((x ^ x >> 13) * 0xC2B2AE35) & ALL
    return x ^ x >> 16
