"""Arrays come in as NumPy, torch or any DLPack array, and go out as the same kind.

Everything between works on NumPy arrays and torch tensors only; this is the one place that
knows how to pass from one to the other without a copy.
"""

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from regard._errors import DtypeError

if TYPE_CHECKING:
    import torch

Array = Any  # a NumPy array or a torch tensor
DTYPES = ("float64", "float32", "bfloat16", "float16")


def is_torch(x: object) -> "TypeGuard[torch.Tensor]":
    """Whether x is a torch tensor, without importing torch."""
    if isinstance(x, np.ndarray):  # asked often, and this is the quickest answer
        return False
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def requires_grad(x: object) -> bool:
    """Whether torch wants the gradient of x."""
    return is_torch(x) and x.requires_grad


def accept(x: object, name: str) -> Array:
    """x as a NumPy array or torch tensor over the same memory.

    Raises:
        DtypeError: x is neither, nor exports DLPack from the CPU.
    """
    if is_torch(x):
        if x.layout is not _strided():
            raise DtypeError(f"{name}: got a tensor of layout {x.layout}; needs a strided one")
        if not _has_memory(x):
            raise DtypeError(
                f"{name}: got a tensor without memory of its own, as torch.func, torch.jit.trace "
                "and fake tensor modes make them; regard.nn.functional serves these"
            )
        return x.resolve_neg()
    if isinstance(x, np.ma.MaskedArray):
        raise DtypeError(f"{name}: got a masked array; needs its data, and its mask as a mask")
    if isinstance(x, np.ndarray):
        # A field of a structured array may lie at any step of bytes, which no kernel reads.
        return x.copy() if any(step % x.itemsize for step in x.strides) else x
    if hasattr(x, "__dlpack__") and hasattr(x, "__array_namespace__"):
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise DtypeError(f"{name}: cannot be read through DLPack ({error})") from error
    raise DtypeError(
        f"{name}: got {type(x).__name__}; needs a NumPy array, a torch tensor, or an array of a "
        "library with DLPack and the array API"
    )


def _has_memory(x: "torch.Tensor") -> bool:
    import torch

    if not x.is_cpu:
        return True
    if torch._C._get_tracing_state():
        return False
    try:
        # A fake tensor warns where its memory is asked for.
        plain = type(x) in (torch.Tensor, torch.nn.Parameter)
        real = plain or x.untyped_storage().device.type == "cpu"
        return real and (bool(x.data_ptr()) or not x.numel())
    except RuntimeError:
        return False


@cache
def _strided() -> Any:
    import torch

    return torch.strided


@cache  # dtypes and devices take microseconds to spell themselves
def _name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")


def dtype_name(x: Array) -> str:
    """'float32', 'bfloat16', 'bool', ... for either kind of array."""
    return _name(x.dtype)


def device_name(x: Array) -> str:
    """'cpu', 'cuda:0', ..."""
    return _name(x.device) if is_torch(x) else "cpu"


def broadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """A view of x with a shape that it broadcasts to."""
    return x.expand(shape) if is_torch(x) else np.broadcast_to(x, shape)


def raw(x: Array) -> np.ndarray:
    """A NumPy view of the same memory; bfloat16 as its bits (uint16), which NumPy lacks."""
    if is_torch(x):
        bits = x.detach() if x.requires_grad else x
        if dtype_name(bits) == "bfloat16":
            import torch

            bits = bits.view(torch.int16)
            return np.asarray(bits.numpy().view(np.uint16))
        return np.asarray(bits.numpy())
    return np.asarray(x.view(np.uint16) if dtype_name(x) == "bfloat16" else x)


def viewed(x: Array) -> Array:
    """x as the kernels read it: tensors themselves, and NumPy arrays as `raw` gives them."""
    return x if is_torch(x) else raw(x)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """An array of this shape, of the kind and dtype of `like`, on the CPU; its numbers are to be
    written."""
    if is_torch(like):
        import torch

        return torch.empty(shape, dtype=like.dtype, device="cpu")
    return np.empty(shape, like.dtype)


def tensor(x: Array, device: Any = None) -> "torch.Tensor":
    """x as a torch tensor on a device, sharing memory where it can."""
    import torch

    if is_torch(x):
        return x if device is None or x.device == device else x.to(device)
    if any(stride < 0 for stride in x.strides):  # which torch does not have
        x = np.ascontiguousarray(x)
    if dtype_name(x) == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(device)
    if not x.flags.writeable:  # torch warns about memory that it could, but will not, write to
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.as_tensor(x, device=device)
    return torch.as_tensor(x, device=device)


def float64(x: Array) -> np.ndarray:
    """x as a float64 NumPy array (integers and booleans keep their dtype)."""
    if is_torch(x):
        x = x.detach()
        x = (x.double() if x.is_floating_point() else x).cpu()
    return np.asarray(x, np.float64 if dtype_name(x) in DTYPES else None)


def restore(x: Array, like: Any) -> Any:
    """x as the kind of array that `like`, an argument as the user gave it, is."""
    if is_torch(like):
        return tensor(x, like.device)
    if is_torch(x):
        x = raw(x) if dtype_name(x) != "bfloat16" else raw(x).view(like.dtype)
    if isinstance(like, np.ndarray):
        return x
    return like.__array_namespace__().from_dlpack(x)
