"""Attention rollout (Abnar and Zuidema 2020) of some rows, layer by layer downwards.

A row of the product of all layers' matrices is a vector times one matrix after another. A vector
times a matrix of weights is what reaches the values' gradient from a gradient of the context: so a
layer costs a pass of the kernels forwards and one backwards, in memory that grows with L.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from regard._arrays import float64, tensor
from regard._attention import attend
from regard._errors import LimitError, OptionError
from regard._observation import NOTHING
from regard._problem import Problem
from regard._score import Additive
from regard._watch.reading import View
from regard._weights import LIMIT

AT_ONCE = 64  # rows that are followed through a layer together


def rolled(views: list[View], tokens: np.ndarray, residual: float) -> np.ndarray:
    """The body of `Trace.rollout`: (len(tokens), L) in float64.

    Raises:
        OptionError: residual is not 0 to 1.
        LimitError: more than `LIMIT` numbers would come of it.
    """
    if not 0.0 <= residual <= 1.0:
        raise OptionError(f"residual: got {residual}; needs a share from 0 to 1")
    count = views[0].queries.count
    if len(tokens) * count > LIMIT:
        raise LimitError(
            f"rollout: {len(tokens) * count:,} numbers were asked for, and at most {LIMIT:,} are "
            "given at once; name fewer tokens"
        )
    found = np.zeros((len(tokens), count))
    found[np.arange(len(tokens)), tokens] = 1.0
    for first in range(0, len(tokens), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        for view in reversed(views):
            found[some] = residual * found[some] + (1.0 - residual) * _through(view, found[some])
    return found


def _through(view: View, mass: np.ndarray) -> np.ndarray:
    """(n, L) times the mean of the heads' weights."""
    rows = np.flatnonzero(mass.any(axis=0))
    total = np.zeros_like(mass)
    if len(rows):
        start, stop = int(rows[0]), int(rows[-1]) + 1
        columns = slice(view.offset, view.offset + view.keys.count)
        for part in view.parts:
            problem = part.problem.rows(start, stop)
            total += _gathered(problem, mass[:, start:stop])[:, columns]
    return np.asarray(total / len(view.heads))


def _gathered(problem: Problem, mass: np.ndarray) -> np.ndarray:
    """(n, S), the sum over heads and rows of mass (n, rows) times the weights."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        query, key = (_plain(tensor(x)) for x in (problem.query, problem.key))
        shape = (*key.shape[:-1], len(mass))
        value = torch.zeros(shape, dtype=key.dtype, device=key.device, requires_grad=True)
        sinks = None if problem.sinks is None else _plain(tensor(problem.sinks))
        score = problem.score and Additive(_plain(tensor(problem.score.vector)))
        problem = replace(problem, query=query, key=key, value=value, sinks=sinks, score=score)
        context, _ = attend(problem, NOTHING)
        upstream = torch.as_tensor(mass.T, dtype=context.dtype, device=context.device)
        (gradient,) = torch.autograd.grad(context, value, upstream.expand_as(context).contiguous())
    return np.asarray(float64(gradient).sum(axis=0).T)


def _plain(x: Any) -> Any:
    """Without a graph, in float32 at least; tensors of inference mode can carry none."""
    x = x.clone() if x.is_inference() else x.detach()
    return x if x.dtype.itemsize >= 4 else x.float()
