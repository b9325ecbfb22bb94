"""ONNX Runtime: models of one node. Inputs and output are bound once, so a call copies nothing."""

from collections.abc import Callable, Sequence

import torch

from benchmarks.cases import Case, Inputs
from benchmarks.machine import THREADS
from benchmarks.peers.ready import Ready, Tensors, room_for_weights, without_gradients

DOMAINS = {"": 23, "com.microsoft": 1}


def attention(case: Case, inputs: Inputs) -> Ready:
    """The standard's own Attention; (1, heads, length, d), as torch has it."""
    room_for_weights(case)
    output = torch.empty_like(inputs.query)
    options = {"is_causal": int(case.causal)}
    return _ready(case, "Attention", "", options, [*inputs.arguments, output], lambda y: y)


def multi_head(case: Case, inputs: Inputs) -> Ready:
    """Its contributed MultiHeadAttention; (1, length, heads * d). Stores scores if causal."""
    if case.causal:
        room_for_weights(case)
    merged = [tensor.transpose(1, 2).flatten(2).contiguous() for tensor in inputs.arguments]
    options = {"num_heads": case.heads, "unidirectional": int(case.causal)}
    ready = _ready(
        case,
        "MultiHeadAttention",
        "com.microsoft",
        options,
        [*merged, torch.empty_like(merged[0])],
        lambda y: y.view(1, case.L, case.heads, case.d).transpose(1, 2),
    )
    return Ready(ready.call, ready.read, copies=sum(tensor.nbytes for tensor in merged))


def _ready(
    case: Case,
    op: str,
    domain: str,
    options: dict[str, int],
    tensors: Sequence[torch.Tensor],
    layout: Callable[[torch.Tensor], torch.Tensor],
) -> Ready:
    """`tensors` are query, key, value and the output; `layout` makes the output torch's."""
    without_gradients(case)
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what goes wrong is raised as well
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    settings.inter_op_num_threads = 1
    # Its threads may spin while it computes and no longer: the cores are others' then.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    model = _model(case, op, domain, options, [list(tensor.shape) for tensor in tensors])
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in tensors]
    for name, value in zip("qkv", values[:3], strict=True):
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("y", values[3])

    def read(_: object) -> Tensors:
        return (layout(torch.from_numpy(values[3].numpy())),)

    return Ready(lambda: session.run_with_iobinding(binding), read)


def _model(
    case: Case, op: str, domain: str, options: dict[str, int], shapes: Sequence[list[int]]
) -> bytes:
    from onnx import TensorProto, helper

    kind = {torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.BFLOAT16}[case.dtype]
    *ins, out = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, shape in zip("qkvy", shapes, strict=True)
    )
    node = helper.make_node(op, ["q", "k", "v"], ["y"], domain=domain, **options)
    opsets = [helper.make_opsetid(name, version) for name, version in DOMAINS.items()]
    graph = helper.make_graph([node], op, ins, [out])
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model
