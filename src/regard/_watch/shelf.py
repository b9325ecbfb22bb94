"""Memory for what stays while much else comes and goes."""

import mmap
from typing import Any

import torch

SLAB = 2**24
SMALL = 2**12


class Shelf:
    """Copies of tensors, laid one after another into memory of its own.

    A model allocates and frees tens of megabytes in every layer. Results that stay would lie in
    between, so that no room that was freed fits the next layer: the heap of a run that keeps 100 MB
    grows by 1.4 GB.
    """

    def __init__(self) -> None:
        self._slab: Any = None
        self._used = SLAB

    def put(self, x: Any) -> Any:
        """A copy, on the shelf unless it is small, large, or on another device."""
        size = x.nbytes
        if not SMALL <= size <= SLAB or x.device.type != "cpu":
            return x
        if self._used + size > SLAB:
            self._slab, self._used = mmap.mmap(-1, SLAB), 0
        place = torch.frombuffer(self._slab, dtype=x.dtype, count=x.numel(), offset=self._used)
        self._used += -(-size // 64) * 64
        return place.view(x.shape).copy_(x)
