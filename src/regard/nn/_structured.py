"""Attention with what PyTorch's arguments cannot say: masks as descriptions, ALiBi, sinks."""

from typing import Any

from torch import Tensor
from torch._compile import _disable_dynamo
from torch.overrides import handle_torch_function, has_torch_function

from regard._attention import attention
from regard._bias import Bias
from regard._masks import Mask
from regard._observation import Observe


# It reads numbers and calls the kernels. `torch.compiler.disable` does the same, but loads the
# whole compiler with `import regard.nn`, which takes longer than loading torch.
@_disable_dynamo
def structured_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None,
    bias: Bias | None,
    sinks: Tensor | None,
    dropout: float,
    observe: Observe | None = None,
) -> Any:
    """`regard.attention` where a torch function mode, as of `regard.watch`, sees the call.

    torch.compile leaves its graph for it.
    """
    options: dict[str, Any] = {"mask": mask, "bias": bias, "sinks": sinks, "dropout": dropout}
    tensors = (query, key, value)
    if has_torch_function(tensors):
        return handle_torch_function(
            structured_attention, tensors, *tensors, **options, observe=observe
        )
    return attention(query, key, value, **options, observe=observe)
