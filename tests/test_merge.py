"""Partial results joined are the whole."""

from typing import Any

import numpy as np
import pytest
import torch

import regard

LSE = regard.Observe(lse=True)
CUTS = [(0, 40), (40, 41), (41, 41), (41, 100)]
SINKS = np.array([0.5, -1.0, 2.0, -np.inf], np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


QUERY, KEY, VALUE = normal(2, 4, 9, 16), normal(2, 2, 100, 16, seed=1), normal(2, 2, 100, 8, seed=2)


def parts(query: Any, key: Any, value: Any, **options: Any) -> tuple[list[Any], list[Any]]:
    found = [
        regard.attention(query, key[..., a:b, :], value[..., a:b, :], observe=LSE, **options)
        for a, b in CUTS
    ]
    return [context for context, _ in found], [seen.lse for _, seen in found]


class TestTheWhole:
    @pytest.mark.parametrize("sinks", [None, SINKS], ids=["no sinks", "sinks"])
    def test_of_arrays(self, sinks: Any) -> None:
        context, lse = regard.merge(*parts(QUERY, KEY, VALUE), sinks=sinks)
        whole, seen = regard.attention(QUERY, KEY, VALUE, sinks=sinks, observe=LSE)
        assert (context.dtype, lse.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(context, whole, rtol=0, atol=2e-6)
        np.testing.assert_allclose(lse, seen.lse, rtol=2e-6)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_of_tensors(self, dtype: torch.dtype) -> None:
        arrays = [torch.from_numpy(x).to(dtype) for x in (QUERY, KEY, VALUE)]
        context, lse = regard.merge(*parts(*arrays), sinks=torch.from_numpy(SINKS))
        whole, seen = regard.attention(*arrays, sinks=torch.from_numpy(SINKS), observe=LSE)
        assert (context.dtype, lse.dtype) == (whole.dtype, seen.lse.dtype)
        atol = 2e-2 if dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(context, whole, rtol=0, atol=atol)
        torch.testing.assert_close(lse, seen.lse, rtol=2e-6, atol=2e-6)

    def test_of_one_head(self) -> None:
        arrays = [x[0, 0] for x in (QUERY, KEY, VALUE)]
        context, lse = regard.merge(*parts(*arrays), sinks=SINKS[:1])
        whole, seen = regard.attention(*arrays, sinks=SINKS[:1], observe=LSE)
        np.testing.assert_allclose(context, whole, rtol=0, atol=2e-6)
        np.testing.assert_allclose(lse, seen.lse, rtol=2e-6)

    def test_where_a_row_sees_nothing(self) -> None:
        mask = np.ones((9, 1), bool)
        mask[3] = False
        context, lse = regard.merge(*parts(QUERY, KEY, VALUE, mask=mask))
        assert not context[..., 3, :].any()
        assert (lse[..., 3] == -np.inf).all()
        assert np.isfinite(lse[..., 4:]).all()

    def test_of_gradients(self) -> None:
        arrays = [torch.from_numpy(x).requires_grad_() for x in (QUERY, KEY, VALUE)]
        sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True)
        inputs = [*arrays, sinks]
        context, lse = regard.merge(*parts(*arrays), sinks=sinks)
        got = torch.autograd.grad(context.cos().sum() + lse.sin().sum(), inputs)
        whole, seen = regard.attention(*arrays, sinks=sinks, observe=LSE)
        want = torch.autograd.grad(whole.cos().sum() + seen.lse.sin().sum(), inputs)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("contexts", "lses", "sinks", "error", "message"),
    [
        ([], [], None, regard.ShapeError, "lses: needs one for each context, and at least one"),
        ([QUERY], [], None, regard.ShapeError, "got 0 for 1"),
        ([QUERY[0, 0, 0]], [QUERY], None, regard.ShapeError, r"contexts\[0\]: got shape \(16,\)"),
        ([QUERY, KEY], [QUERY[..., 0]] * 2, None, regard.ShapeError, r"contexts\[1\]: got shape"),
        ([QUERY], [QUERY], None, regard.ShapeError, r"lses\[0\]: got .* needs \(2, 4, 9\)"),
        ([QUERY], [torch.zeros(2, 4, 9)], None, regard.DtypeError, r"lses\[0\]: needs to be the"),
        ([QUERY], [QUERY[..., 0].astype(int)], None, regard.DtypeError, "got dtype int64"),
        (
            [QUERY, QUERY.astype("d")],
            [QUERY[..., 0]] * 2,
            None,
            regard.DtypeError,
            "float64; needs",
        ),
        (
            [QUERY],
            [QUERY[..., 0]],
            torch.zeros(4),
            regard.DtypeError,
            "sinks: needs to be the kind",
        ),
        (["x"], [QUERY], None, regard.DtypeError, r"contexts\[0\]: got str; needs a NumPy array"),
        ([QUERY], [QUERY[..., 0]], SINKS[:2], regard.ShapeError, r"sinks: got shape \(2,\)"),
    ],
)
def test_a_wrong_argument(contexts: Any, lses: Any, sinks: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        regard.merge(contexts, lses, sinks)
