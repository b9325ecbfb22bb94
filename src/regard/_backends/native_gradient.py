"""The kernels' gradients, as torch's autograd asks for them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard._arrays import Array, raw, tensor
from regard._backends.derivative import first_derivative
from regard._backends.native_call import backward, forward, learned_bias
from regard._observation import Observation, Observe
from regard._problem import Problem
from regard._score import Additive

NAMES = ("query", "key", "value", "sinks", "bias", "vector")


def run_with_gradient(problem: Problem, observe: Observe) -> tuple[Array | None, Observation]:
    """Context and observation; gradients flow through the context and the lse."""
    # Where the weights alone are asked about, the value has no width.
    value = problem.key[..., :0] if problem.value is None else problem.value
    apply: Any = _Attention.apply
    vector = None if problem.score is None else tensor(problem.score.vector)
    inputs = (problem.query, problem.key, value, problem.sinks, learned_bias(problem), vector)
    context, lse, seen = apply(replace(problem, value=value), observe, *inputs)
    seen = replace(seen, lse=lse if observe.lse else None)
    return None if problem.value is None else context, seen


class _Attention(torch.autograd.Function):
    """(context, lse, Observation), with gradients through the first two."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, observe: Observe, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Observation]:
        context, seen = forward(problem, replace(observe, lse=True), inputs[-2])
        assert context is not None
        lse = tensor(seen.lse)
        ctx.save_for_backward(*inputs, context, lse)
        # Without the arrays: they are saved above, where autograd watches over them.
        ctx.problem = replace(problem, query=None, key=None, value=None, sinks=None, score=None)
        return context, lse, seen

    @staticmethod
    def backward(ctx: Any, of_context: Tensor, of_lse: Tensor, _: None) -> Any:
        wanted = ctx.needs_input_grad[2:]

        def gradients(of_context: Tensor, of_lse: Tensor, *saved: Any) -> tuple[Any, ...]:
            *inputs, context, lse = saved
            query, key, value, sinks, learned, vector = inputs
            arrays = {"query": query, "key": key, "value": value, "sinks": sinks}
            score = None if vector is None else Additive(vector)
            problem = replace(ctx.problem, **arrays, score=score)
            upstream = of_context.resolve_neg(), raw(of_lse.resolve_neg().to(lse).contiguous())
            found = backward(problem, context, raw(lse), *upstream, learned)
            return tuple(
                tensor(found[name]).to(x) if want else None
                for name, x, want in zip(NAMES, inputs, wanted, strict=True)
            )

        return None, None, *first_derivative(gradients, of_context, of_lse, *ctx.saved_tensors)
