"""What PyTorch models are built from: modules, and `regard.nn.functional`."""

import regard.nn.functional as functional
from regard.nn.additive import AdditiveAttention

__all__ = ["AdditiveAttention", "functional"]
