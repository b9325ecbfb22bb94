"""PyTorch's own samples of its operator (OpInfo), as regard computes them."""

from functools import cache
from typing import Any

import pytest
import torch
from beside_torch import FLOOR, assert_as_good, check, doubled, results
from torch import Tensor

from regard._dropout import kept
from regard.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.once


@cache
def opinfo() -> Any:
    """Imported late: it takes seconds."""
    from torch.testing._internal.common_methods_invocations import op_db

    name = "nn.functional.scaled_dot_product_attention"
    return next(info for info in op_db if info.name == name)


def samples(dtype: torch.dtype) -> list[tuple[list[Tensor], dict[str, Any]]]:
    torch.manual_seed(0)
    found = opinfo().sample_inputs("cpu", dtype, requires_grad=True)
    return [([sample.input, *sample.args], sample.kwargs) for sample in found]


def formula(
    q: Tensor, k: Tensor, v: Tensor, *, left: Tensor, dropout_p: float, is_causal: bool
) -> Tensor:
    """PyTorch's own, with dropout as given."""
    score = q @ k.mT / q.shape[-1] ** 0.5
    if is_causal:
        score = score.masked_fill(torch.ones_like(score[0]).triu(1) > 0, -torch.inf)
    return (score.softmax(-1) * left / (1 - dropout_p)) @ v


def drawn(arrays: list[Tensor], dropout_p: float) -> Tensor:
    """What dropout leaves after torch.manual_seed(1)."""
    torch.manual_seed(1)
    shape = (arrays[0] @ arrays[1].mT).shape
    matrix = torch.arange(shape[:-2].numel()).reshape(*shape[:-2], 1, 1)
    i, j = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
    left: Tensor = kept(int(torch.randint(2**62, ())), dropout_p, matrix, i, j)
    return left


@pytest.mark.parametrize("dtype", FLOOR)
def test_samples_without_dropout(dtype: torch.dtype) -> None:
    chosen = [sample for sample in samples(dtype) if not sample[1]["dropout_p"]]
    assert len(chosen) > 10
    for arrays, options in chosen:
        check(*arrays, **options)


@pytest.mark.parametrize("dtype", FLOOR)
def test_samples_with_dropout(dtype: torch.dtype) -> None:
    chosen = [sample for sample in samples(dtype) if sample[1]["dropout_p"]]
    assert len(chosen) > 10
    for arrays, options in chosen:
        left = drawn(arrays, options["dropout_p"])
        torch.manual_seed(1)
        got = results(scaled_dot_product_attention, arrays, options)
        own = results(formula, arrays, {**options, "left": left})
        exact = results(formula, [doubled(x) for x in arrays], {**options, "left": left})
        # PyTorch's fused way, the less exact one, has no dropout: twice what it is allowed else.
        assert_as_good(got, [own], exact, factor=4)


def test_every_dtype_of_pytorch_is_taken() -> None:
    assert opinfo().dtypes == set(FLOOR)
