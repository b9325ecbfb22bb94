"""The operator: kinds of arrays in and out, shapes, dtypes, sizes of zero."""

from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch

import regard

EVERYTHING = regard.Observe(
    lse=True,
    entropy=True,
    peak=True,
    top=2,
    received="all",
    map=(2, 2),
    spans=([(0, 2)], None),
    sink=True,
)
SHAPES = {  # of what EVERYTHING observes at L = 3, S = 5, after (*batch, heads)
    "lse": (3,),
    "entropy": (3,),
    "weight": (3,),
    "key": (3,),
    "keys": (3, 2),
    "weights": (3, 2),
    "received": (5,),
    "map": (2, 2),
    "spans": (1, 5),
    "sink": (3,),
}


def arrays(
    *batch: int,
    heads: int = 4,
    kv_heads: int = 2,
    L: int = 3,
    S: int = 5,
    d_k: int = 8,
    d_v: int = 6,
) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((heads, L, d_k), (kv_heads, S, d_k), (kv_heads, S, d_v))
    return [rng.normal(size=(*batch, *shape)).astype(np.float32) for shape in shapes]


def flat(seen: regard.Observation) -> list[Any]:
    found: list[Any] = []
    seen.each(found.append)
    return found


class TestKinds:
    """The same kind of array comes back, with the same numbers."""

    @pytest.fixture
    def want(self) -> Any:
        return regard.attention(*arrays(2), observe=EVERYTHING)

    def test_numpy(self, want: Any) -> None:
        context, seen = want
        assert all(type(x) is np.ndarray for x in [context, *flat(seen)])

    def test_torch(self, want: Any) -> None:
        tensors = [torch.from_numpy(x) for x in arrays(2)]
        context, seen = regard.attention(*tensors, observe=EVERYTHING)
        for got, expected in zip([context, *flat(seen)], [want[0], *flat(want[1])], strict=True):
            assert isinstance(got, torch.Tensor)
            assert got.device == tensors[0].device
            np.testing.assert_array_equal(got.numpy(), expected)

    def test_any_library_with_dlpack_and_the_array_api(self, want: Any) -> None:
        strict = [array_api_strict.asarray(x) for x in arrays(2)]
        context, seen = regard.attention(*strict, observe=EVERYTHING)
        for got, expected in zip([context, *flat(seen)], [want[0], *flat(want[1])], strict=True):
            assert type(got) is type(strict[0])
            np.testing.assert_array_equal(np.from_dlpack(got), expected)

    def test_a_read_only_array(self, want: Any) -> None:
        frozen = arrays(2)
        for x in frozen:
            x.flags.writeable = False
        np.testing.assert_array_equal(regard.attention(*frozen), want[0])

    def test_masks_and_biases_of_the_other_kind(self) -> None:
        query, key, value = arrays(2)
        mask, bias = np.arange(5) > 1, np.ones((3, 5), np.float32)
        want = regard.attention(query, key, value, mask=mask, bias=bias, sinks=np.zeros(4, "f"))
        tensors = [torch.from_numpy(x) for x in (mask, bias, np.zeros(4, "f"))]
        got = regard.attention(
            query, key, value, mask=tensors[0], bias=tensors[1], sinks=tensors[2]
        )
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, want)

    @pytest.mark.parametrize("backend", [None, "blockwise", "reference"])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
    def test_the_dtype_of_numpy_comes_back(self, dtype: Any, backend: str | None) -> None:
        context = regard.attention(*[x.astype(dtype) for x in arrays()], backend=backend)
        assert context.dtype == dtype

    @pytest.mark.parametrize("backend", [None, "blockwise", "reference"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_the_dtype_of_torch_comes_back(self, dtype: Any, backend: str | None) -> None:
        tensors = [torch.from_numpy(x).to(dtype) for x in arrays()]
        assert regard.attention(*tensors, backend=backend).dtype == dtype

    def test_tensors_without_numbers_are_refused(self) -> None:
        tensors = [torch.from_numpy(x).to("meta") for x in arrays()]
        with pytest.raises(regard.BackendError, match="blockwise cannot serve: tensors on meta"):
            regard.attention(*tensors)


class TestShapes:
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_of_the_context(self, batch: tuple[int, ...]) -> None:
        assert regard.attention(*arrays(*batch)).shape == (*batch, 4, 3, 6)

    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_of_the_statistics(self, batch: tuple[int, ...]) -> None:
        _, seen = regard.attention(*arrays(*batch), observe=EVERYTHING)
        assert [x.shape for x in flat(seen)] == [(*batch, 4, *s) for s in SHAPES.values()]

    def test_two_dimensions_are_one_head_without_its_axis(self) -> None:
        query, key, value = arrays(heads=1, kv_heads=1)
        context, seen = regard.attention(query[0], key[0], value[0], observe=EVERYTHING)
        want, wanted = regard.attention(query, key, value, observe=EVERYTHING)
        for got, expected in zip([context, *flat(seen)], [want, *flat(wanted)], strict=True):
            np.testing.assert_array_equal(got, expected[0])
        assert [x.shape for x in flat(seen)] == list(SHAPES.values())

    def test_batches_broadcast(self) -> None:
        query, key, value = arrays(2, 3)
        want = regard.attention(query, np.stack([key[1]] * 2), np.stack([value[1]] * 2))
        np.testing.assert_array_equal(regard.attention(query, key[1], value[1]), want)

    def test_a_key_head_serves_its_group_of_query_heads(self) -> None:
        query, key, value = arrays(2, heads=6, kv_heads=2)
        repeated = [np.repeat(x, 3, axis=-3) for x in (key, value)]
        want = regard.attention(query, *repeated)
        np.testing.assert_array_equal(regard.attention(query, key, value), want)

    @pytest.mark.parametrize("backend", ["native", "blockwise", "reference"])
    @pytest.mark.parametrize("empty", ["batch", "heads", "L", "S", "d_k", "d_v"])
    def test_sizes_of_zero(self, empty: str, backend: str) -> None:
        if empty == "batch":
            case = arrays(0)
        elif empty == "heads":
            case = arrays(heads=0, kv_heads=0)
        else:
            case = arrays(**{empty: 0})
        L, S = case[0].shape[-2], case[1].shape[-2]
        observe = regard.Observe(
            lse=True, entropy=True, peak=True, received="all", spans=(None, None), sink=True
        )
        context, seen = regard.attention(*case, observe=observe, backend=backend)
        assert context.shape == (*case[0].shape[:-1], case[2].shape[-1])
        assert seen.spans.shape == (*case[0].shape[:-2], L, S)
        assert not np.isnan(context).any()
        if empty == "S":
            assert (context == 0).all()
            assert (seen.lse == -np.inf).all()
            assert (seen.peak.key == -1).all()
        if empty == "d_k":  # every score is 0: the mean of the values
            mean = np.repeat(case[2].mean(axis=-2, keepdims=True), 2, axis=-3)
            np.testing.assert_allclose(context, np.broadcast_to(mean, context.shape), rtol=1e-5)


class TestInput:
    def test_it_is_not_written_to(self) -> None:
        case, before = arrays(2), arrays(2)
        regard.attention(*case, mask=regard.causal(), observe=EVERYTHING)
        for x, y in zip(case, before, strict=True):
            np.testing.assert_array_equal(x, y)

    def test_a_tensor_that_requires_a_gradient_is_not_detached(self) -> None:
        query, key, value = (torch.from_numpy(x) for x in arrays())
        key.requires_grad_()
        regard.attention(query, key, value).sum().backward()
        assert key.grad is not None

    def test_without_gradients_wanted_there_are_none(self) -> None:
        tensors = [torch.from_numpy(x).requires_grad_() for x in arrays()]
        with torch.no_grad():
            assert not regard.attention(*tensors).requires_grad


def test_without_observe_the_context_comes_alone() -> None:
    assert isinstance(regard.attention(*arrays()), np.ndarray)


def test_an_empty_observe_gives_an_empty_observation() -> None:
    _, seen = regard.attention(*arrays(), observe=regard.Observe())
    assert repr(seen) == repr(regard.Observation()) == "Observation()"


@pytest.mark.parametrize("d", [64, 256, 1024])
class TestUnitVariance:
    """Why scores are divided by √d: dot products of unit-variance vectors have variance d."""

    @pytest.fixture
    def pair(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """500 queries, each with 8 keys of its own."""
        rng = np.random.default_rng(0)
        return rng.normal(size=(500, 1, 1, d)), rng.normal(size=(500, 1, 8, d))

    def gradient(self, pair: Any, scale: float | None) -> float:
        """Mean size of the softmax's derivative, diag(p) - p pᵀ."""
        p = np.asarray(regard.weights(*pair, scale=scale))[:, 0, 0]
        jacobian = np.einsum("ij,jk->ijk", p, np.eye(8)) - np.einsum("ij,ik->ijk", p, p)
        return float(np.linalg.norm(jacobian, axis=(1, 2)).mean())

    def test_products_have_variance_d(self, pair: Any, d: int) -> None:
        query, key = pair
        assert np.var(query @ key.swapaxes(-1, -2)) == pytest.approx(d, rel=0.05)

    def test_with_the_scale_the_gradient_does_not_depend_on_d(self, pair: Any) -> None:
        assert self.gradient(pair, None) == pytest.approx(0.365, rel=0.03)

    def test_without_it_the_softmax_saturates_and_the_gradient_vanishes(
        self, pair: Any, d: int
    ) -> None:
        assert self.gradient(pair, 1.0) == pytest.approx(1.4 / np.sqrt(d), rel=0.3)


def test_a_field_of_a_structured_array() -> None:
    records = np.zeros((4, 8), [("a", "f4"), ("b", "i1")])
    records["a"] = np.arange(32).reshape(4, 8)
    x = records["a"]
    np.testing.assert_array_equal(regard.attention(x, x, x), regard.attention(x + 0, x + 0, x + 0))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_a_tensor_without_memory_is_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def attend(x: Any) -> Any:
        return regard.attention(x, x, x)

    given = torch.ones(1, 4, 8)
    refused = pytest.raises(
        regard.DtypeError, match="query: got a tensor without memory of its own"
    )
    with FakeTensorMode(), refused:
        attend(torch.ones(1, 4, 8))
    for transform in (torch.func.vmap, torch.func.functionalize):
        with refused:
            transform(attend)(given[None])
    with refused:
        torch.jit.trace(attend, (given,))
