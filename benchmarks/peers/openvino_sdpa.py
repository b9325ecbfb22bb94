"""OpenVINO: a model of one ScaledDotProductAttention, compiled for the CPU."""

from typing import Any

import torch

from benchmarks.cases import Case, Inputs
from benchmarks.machine import THREADS
from benchmarks.peers.ready import Ready, Tensors, without_gradients


def sdpa(case: Case, inputs: Inputs) -> Ready:
    """It keeps a row of scores per query. Unasked, it computes float32 in bfloat16 where it can."""
    without_gradients(case)
    import openvino
    from openvino import opset13 as ops

    name = {torch.float32: "f32", torch.bfloat16: "bf16"}[case.dtype]
    element = getattr(openvino.Type, name)
    parameters = [ops.parameter(list(tensor.shape), element) for tensor in inputs.arguments]
    attention = ops.scaled_dot_product_attention(*parameters, causal=case.causal)
    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": name,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for whoever else is on its core
    }
    model = openvino.Model([ops.result(attention)], parameters, "attention")
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    tensors = [*inputs.arguments, torch.empty_like(inputs.query)]
    for i, tensor in enumerate(inputs.arguments):
        request.set_input_tensor(i, _shared(openvino, tensor, element))
    request.set_output_tensor(0, _shared(openvino, tensors[3], element))

    def read(_: object) -> Tensors:
        return (tensors[3],)

    return Ready(request.infer, read)


def _shared(openvino: Any, tensor: torch.Tensor, element: Any) -> Any:
    """A tensor on the same memory; NumPy, which it goes through, knows no bfloat16."""
    raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return openvino.Tensor(raw.numpy(), openvino.Shape(list(tensor.shape)), element)
