"""What PyTorch models are built from: `regard.nn.functional`."""

import regard.nn.functional as functional

__all__ = ["functional"]
