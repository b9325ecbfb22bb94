"""`regard.nn.functional.scaled_dot_product_attention` against PyTorch's."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as their
from beside_torch import FLOOR, check, qkv, tensors
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import regard
from regard._dropout import kept
from regard.nn import functional
from regard.nn.functional import scaled_dot_product_attention

SHAPES = {
    "2-D": [(7, 8), (9, 8), (9, 8)],
    "3-D": [(3, 7, 8), (3, 9, 8), (3, 9, 8)],
    "4-D": [(2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 8)],
    "5-D": [(2, 2, 3, 7, 8), (2, 2, 3, 9, 8), (2, 2, 3, 9, 8)],
    "6-D": [(1, 2, 2, 3, 7, 8), (1, 2, 2, 3, 9, 8), (1, 2, 2, 3, 9, 8)],
    "narrow values": [(2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 5)],
    "wide values": [(2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 70)],
    "one batch for all": [(4, 3, 7, 8), (1, 3, 9, 8), (1, 3, 9, 8)],
    "each its own batch": [(1, 3, 7, 8), (2, 3, 9, 8), (1, 3, 9, 8)],
    "a batch of values": [(1, 3, 7, 8), (1, 3, 9, 8), (4, 3, 9, 8)],
    "one head for all": [(2, 6, 7, 8), (2, 1, 9, 8), (2, 1, 9, 8)],
    "one query head": [(2, 1, 7, 8), (2, 3, 9, 8), (2, 3, 9, 8)],
    "one key head": [(2, 3, 7, 8), (2, 1, 9, 8), (2, 3, 9, 8)],
    "fewer dimensions": [(2, 3, 7, 8), (3, 9, 8), (9, 8)],
    "more dimensions": [(7, 8), (3, 9, 8), (2, 3, 9, 8)],
    "one query": [(2, 3, 1, 8), (2, 3, 9, 8), (2, 3, 9, 8)],
    "one key": [(2, 3, 7, 8), (2, 3, 1, 8), (2, 3, 1, 8)],
    "no query": [(2, 3, 0, 8), (2, 3, 9, 8), (2, 3, 9, 8)],
    "no key": [(2, 3, 7, 8), (2, 3, 0, 8), (2, 3, 0, 8)],
    "no width": [(2, 3, 7, 0), (2, 3, 9, 0), (2, 3, 9, 8)],
    "no width of values": [(2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 0)],
    "no batch": [(0, 3, 7, 8), (0, 3, 9, 8), (0, 3, 9, 8)],
    "no head": [(2, 0, 7, 8), (2, 0, 9, 8), (2, 0, 9, 8)],
    "longer than a block": [(1, 2, 70, 32), (1, 2, 600, 32), (1, 2, 600, 32)],
}
MASK_SHAPES = [(7, 9), (1, 9), (7, 1), (1, 1), (3, 7, 9), (3, 1, 9), (2, 1, 7, 9), (2, 3, 7, 9)]


def boolean(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6


class TestAsPyTorch:
    """Context and gradients."""

    @pytest.mark.parametrize("dtype", FLOOR)
    @pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
    def test_of_any_shape(self, shapes: Any, dtype: torch.dtype) -> None:
        check(*tensors(*shapes, dtype=dtype))

    @pytest.mark.parametrize("described", [causal_upper_left, causal_lower_right])
    def test_of_a_described_causal_mask(self, described: Any) -> None:
        query, key, value = qkv(2, 2)  # as many heads as such a mask has kinds
        got = scaled_dot_product_attention(query, key, value, described(7, 9))
        want = their.scaled_dot_product_attention(query, key, value, described(7, 9))
        assert type(got) is torch.Tensor
        torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("dtype", FLOOR)
    @pytest.mark.parametrize(("L", "S"), [(7, 9), (9, 7), (8, 8), (1, 9), (70, 300)])
    def test_causal_from_the_upper_left(self, L: int, S: int, dtype: torch.dtype) -> None:
        check(*qkv(2, 3, L=L, S=S, dtype=dtype), is_causal=True)

    @pytest.mark.parametrize("shape", MASK_SHAPES)
    def test_with_a_boolean_mask(self, shape: tuple[int, ...]) -> None:
        check(*qkv(2, 3), attn_mask=boolean(shape))

    @pytest.mark.parametrize("dtype", FLOOR)
    @pytest.mark.parametrize("shape", MASK_SHAPES)
    def test_with_a_mask_to_add(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        check(*qkv(2, 3, dtype=dtype), attn_mask=tensors(shape, dtype=dtype)[0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_with_a_float32_mask_for_any_dtype(self, dtype: torch.dtype) -> None:
        check(*qkv(2, 3, dtype=dtype), attn_mask=tensors((3, 7, 9))[0])

    def test_with_a_mask_for_two_dimensions(self) -> None:
        check(*qkv(), attn_mask=boolean((7, 9)))

    def test_with_a_mask_over_five_dimensions(self) -> None:
        check(*qkv(2, 2, 3), attn_mask=tensors((2, 1, 1, 7, 9))[0])

    @pytest.mark.parametrize("d_v", [8, 5])
    @pytest.mark.parametrize("kind", ["boolean", "to add"])
    def test_where_a_query_sees_no_key(self, kind: str, d_v: int) -> None:
        seen = boolean((7, 9))
        seen[3] = False
        mask = seen if kind == "boolean" else torch.zeros(7, 9).masked_fill(~seen, -torch.inf)
        check(*qkv(2, 3, d_v=d_v), attn_mask=mask)

    def test_where_a_mask_comes_with_causality(self) -> None:
        arrays, (mask,) = qkv(2, 3), tensors((7, 9))
        both = mask.masked_fill(torch.ones(7, 9).triu(1) > 0, -torch.inf)
        got = scaled_dot_product_attention(*arrays, mask, is_causal=True)
        torch.testing.assert_close(got, their.scaled_dot_product_attention(*arrays, both))

    @pytest.mark.parametrize("scale", [0.5, 1, -0.3, 0.0])
    def test_with_any_scale(self, scale: float) -> None:
        check(*qkv(2, 3), scale=scale)

    @pytest.mark.parametrize("heads", [(6, 2, 2), (6, 1, 1), (6, 6, 6), (6, 2, 3), (6, 6, 2)])
    def test_with_grouped_heads(self, heads: tuple[int, int, int]) -> None:
        q, k, v = heads
        check(*tensors((2, q, 7, 8), (2, k, 9, 8), (2, v, 9, 8)), enable_gqa=True)

    @pytest.mark.parametrize("lead", [(), (2, 2)])
    def test_with_grouped_heads_of_any_batch(self, lead: tuple[int, ...]) -> None:
        shapes = ((*lead, n, size, 8) for n, size in ((6, 7), (2, 9), (2, 9)))
        check(*tensors(*shapes), enable_gqa=True, attn_mask=boolean((6, 7, 9)))

    @pytest.mark.parametrize(
        "lay",
        [
            lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
            lambda x: x.mT.contiguous().mT,
            lambda x: x.repeat(1, 1, 2, 3)[:, :, ::2, ::3],
            lambda x: x[:1].expand(x.shape),
            lambda x: x[:, :, :1].expand(x.shape),
        ],
        ids=["heads inside", "transposed", "gaps", "one batch", "one row"],
    )
    def test_wherever_the_numbers_lie(self, lay: Any) -> None:
        check(*map(lay, qkv(2, 3)), attn_mask=lay(tensors((2, 3, 7, 9))[0]))

    def test_of_a_view_that_is_negative_without_being_so_in_memory(self) -> None:
        q, k, v = qkv(2, 3, S=7)
        negative = torch.complex(k, q).conj().imag
        assert negative.is_neg()
        with torch.no_grad():
            got = scaled_dot_product_attention(negative, k, v)
        torch.testing.assert_close(got, their.scaled_dot_product_attention(negative, k, v))

    def test_signature(self) -> None:
        got = inspect.signature(scaled_dot_product_attention)
        defaults = {name: x.default for name, x in got.parameters.items()}
        empty = inspect.Parameter.empty
        assert defaults.pop("observe") is None
        assert list(defaults.items()) == [
            *((name, empty) for name in ("query", "key", "value")),
            ("attn_mask", None),
            ("dropout_p", 0.0),
            ("is_causal", False),
            ("scale", None),
            ("enable_gqa", False),
        ]
        assert got.parameters["scale"].kind is inspect.Parameter.KEYWORD_ONLY


class TestTheShortWay:
    """Plain tensors without gradients do not pass through PyTorch's dispatcher."""

    @pytest.mark.parametrize("dtype", FLOOR)
    def test_gives_the_same_bits(self, dtype: torch.dtype) -> None:
        q, k, v = qkv(2, 3, dtype=dtype)
        other = scaled_dot_product_attention(q.clone().requires_grad_(), k, v)
        assert torch.equal(scaled_dot_product_attention(q, k, v), other)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", [(7, 9), (3, 1, 9), (2, 1, 7, 1)])
    @pytest.mark.parametrize("kind", ["boolean", "to add"])
    def test_gives_the_same_bits_for_masks(
        self, kind: str, shape: tuple[int, ...], causal: bool
    ) -> None:
        q, k, v = qkv(2, 3)
        mask = boolean(shape) if kind == "boolean" else tensors(shape)[0]
        other = scaled_dot_product_attention(q.clone().requires_grad_(), k, v, mask, 0.0, causal)
        assert torch.equal(scaled_dot_product_attention(q, k, v, mask, 0.0, causal), other)

    def test_gives_the_same_bits_for_grouped_heads_and_a_scale(self) -> None:
        q, k, v = tensors((2, 6, 7, 8), (2, 2, 9, 8), (2, 2, 9, 8))
        options: dict[str, Any] = {"enable_gqa": True, "scale": 0.3}
        other = scaled_dot_product_attention(q.clone().requires_grad_(), k, v, **options)
        assert torch.equal(scaled_dot_product_attention(q, k, v, **options), other)

    @pytest.mark.parametrize(
        "options",
        [{}, {"is_causal": True}, {"attn_mask": boolean((7, 9))}, {"attn_mask": torch.ones(7, 9)}],
        ids=["plain", "causal", "boolean", "to add"],
    )
    def test_is_taken(self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(functional, "_attend", None)
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                scaled_dot_product_attention(*qkv(2, 3), **options)
        grouped = tensors((2, 6, 7, 8), (2, 3, 9, 8), (2, 3, 9, 5))
        scaled_dot_product_attention(*grouped, enable_gqa=True)

    def test_serves_in_inference_mode(self) -> None:
        with torch.inference_mode():
            q, k, v = qkv(2, 3)
            got = scaled_dot_product_attention(q, k, v)
            torch.testing.assert_close(got, their.scaled_dot_product_attention(q, k, v))


class TestHiddenKeys:
    @pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
    def test_contribute_nothing_whatever_they_hold(self, garbage: float) -> None:
        q, k, v = qkv(2, 3)
        seen = torch.arange(9) < 6
        want = scaled_dot_product_attention(q, k, v, seen[None])
        k[..., 6:, :] = v[..., 6:, :] = garbage
        torch.testing.assert_close(scaled_dot_product_attention(q, k, v, seen[None]), want)


class TestDropout:
    def test_drops_what_the_seed_says_and_scales_the_rest(self) -> None:
        q, k, v = (x.requires_grad_() for x in qkv(2, 3, dtype=torch.float64))
        torch.manual_seed(1)
        seed = int(torch.randint(2**62, ()))
        numbers = [torch.arange(n) for n in (6, 7, 9)]
        matrix, i, j = numbers[0].reshape(2, 3, 1, 1), numbers[1][:, None], numbers[2]
        left = kept(seed, 0.4, matrix, i, j)
        want = ((q @ k.mT / 8**0.5).softmax(-1) * left / 0.6) @ v
        torch.manual_seed(1)
        got = scaled_dot_product_attention(q, k, v, dropout_p=0.4)
        torch.testing.assert_close(got, want)
        for x in (q, k, v):
            gradients = [
                torch.autograd.grad(y.sin().sum(), x, retain_graph=True) for y in (got, want)
            ]
            torch.testing.assert_close(*gradients)

    def test_drops_others_every_time(self) -> None:
        q, k, v = qkv(2, 3)
        first, second = (scaled_dot_product_attention(q, k, v, dropout_p=0.5) for _ in range(2))
        assert not torch.equal(first, second)

    def test_of_all_leaves_nothing(self) -> None:
        check(*qkv(2, 3), dropout_p=1.0)

    def test_does_not_change_what_is_observed(self) -> None:
        q, k, v = qkv(2, 3)
        observe = regard.Observe(lse=True, entropy=True)
        _, dropped = scaled_dot_product_attention(q, k, v, dropout_p=0.5, observe=observe)
        _, whole = scaled_dot_product_attention(q, k, v, observe=observe)
        assert torch.equal(dropped.entropy, whole.entropy)
        assert torch.equal(dropped.lse, whole.lse)


EVERYTHING = regard.Observe(
    lse=True,
    entropy=True,
    peak=True,
    top=3,
    received=4,
    map=(2, 3),
    spans=([[0, 2], [1, 7]], None),
    sink=True,
)


class TestObservation:
    def test_is_that_of_attention(self) -> None:
        q, k, v = qkv(2, 3)
        options: dict[str, Any] = {"observe": EVERYTHING}
        context, seen = scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        same, wanted = regard.attention(q, k, v, mask=regard.causal(), **options)
        assert torch.equal(context, same)
        assert vars(seen).keys() == vars(wanted).keys()
        assert repr(seen) == repr(wanted)
        torch.testing.assert_close(flat(seen), flat(wanted), rtol=0, atol=0)

    @pytest.mark.parametrize("received", ["all", 1])
    def test_holds_what_was_asked_and_nothing_else(self, received: Any) -> None:
        _, seen = scaled_dot_product_attention(
            *qkv(2, 3), observe=regard.Observe(received=received)
        )
        assert [name for name, x in vars(seen).items() if x is not None] == ["received"]

    def test_of_two_dimensions_has_no_heads(self) -> None:
        _, seen = scaled_dot_product_attention(*qkv(), observe=regard.Observe(lse=True, map=(2, 3)))
        assert (seen.lse.shape, seen.map.shape) == ((7,), (2, 3))

    def test_passes_on_gradients_by_its_lse_alone(self) -> None:
        q, k, v = (x.requires_grad_() for x in qkv(2, 3, dtype=torch.float64))
        _, seen = scaled_dot_product_attention(q, k, v, observe=EVERYTHING)
        assert [x.requires_grad for x in flat(seen)] == [True] + [False] * 9
        got = torch.autograd.grad(seen.lse.sin().sum(), (q, k))
        want = torch.autograd.grad((q @ k.mT / 8**0.5).logsumexp(-1).sin().sum(), (q, k))
        torch.testing.assert_close(got, want)


def flat(seen: regard.Observation) -> list[torch.Tensor]:
    values = [x for x in vars(seen).values() if x is not None]
    return [y for x in values for y in (x if isinstance(x, tuple) else (x,))]


R = torch.zeros
BAD: dict[str, tuple[list[Any], dict[str, Any], type[Exception], str]] = {
    "one dimension": ([R(8), R(9, 8), R(9, 8)], {}, regard.ShapeError, r"query: got shape \(8,\)"),
    "widths": ([R(7, 8), R(9, 6), R(9, 8)], {}, regard.ShapeError, "key: got d_k = 6; needs .* 8"),
    "lengths": ([R(7, 8), R(9, 8), R(5, 8)], {}, regard.ShapeError, "value: got S = 5; needs .* 9"),
    "heads": (
        [R(2, 6, 7, 8), R(2, 2, 9, 8), R(2, 2, 9, 8)],
        {},
        regard.ShapeError,
        r"query, key, value: heads do not fit: query \(6,\), key \(2,\)",
    ),
    "groups": (
        [R(2, 6, 7, 8), R(2, 4, 9, 8), R(2, 2, 9, 8)],
        {"enable_gqa": True},
        regard.ShapeError,
        "key: got 4 heads; query's 6 need to be a multiple",
    ),
    "batch": (
        [R(4, 1, 7, 8), R(2, 1, 9, 8), R(1, 1, 9, 8)],
        {},
        regard.ShapeError,
        r"batch dimensions do not fit: query \(4,\), key \(2,\), value \(1,\)",
    ),
    "kind": ([R(7, 8).numpy(), R(9, 8), R(9, 8)], {}, regard.DtypeError, "query: got ndarray"),
    "dtype": ([*[R(7, 8).int()] * 3], {}, regard.DtypeError, "query: got dtype torch.int32"),
    "dtypes": (
        [R(7, 8), R(9, 8).double(), R(9, 8)],
        {},
        regard.DtypeError,
        "key: got dtype torch.float64; needs query's torch.float32",
    ),
    "devices": (
        [R(7, 8), R(9, 8), R(9, 8, device="meta")],
        {},
        regard.DtypeError,
        "value: is on meta; needs query's cpu",
    ),
    "layout": (
        [R(7, 8).to_sparse(), R(9, 8), R(9, 8)],
        {},
        regard.DtypeError,
        "query: got a tensor",
    ),
}
BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "mask's shape": ({"attn_mask": R(7, 8)}, regard.ShapeError, r"attn_mask: got shape \(7, 8\)"),
    "mask's dimensions": (
        {"attn_mask": R(2, 1, 1, 7, 9)},
        regard.ShapeError,
        r"attn_mask: .* broadcasts to \(2, 3, 7, 9\)",
    ),
    "mask's dtype": (
        {"attn_mask": R(7, 9).int()},
        regard.DtypeError,
        "attn_mask: got dtype .*int32",
    ),
    "mask's kind": ({"attn_mask": regard.causal()}, regard.DtypeError, "attn_mask: got Band"),
    "mask's device": (
        {"attn_mask": R(7, 9, device="meta")},
        regard.DtypeError,
        "attn_mask: is on meta",
    ),
    "dropout": ({"dropout_p": 1.5}, regard.OptionError, "dropout_p: needs 0 to 1, got 1.5"),
    "dropout below": ({"dropout_p": -0.1}, regard.OptionError, "dropout_p: needs 0 to 1, got -0.1"),
    "dropout's kind": ({"dropout_p": "x"}, regard.DtypeError, "dropout_p: got str; needs a number"),
    "scale": ({"scale": torch.inf}, regard.OptionError, "scale: needs a number"),
    "scale's kind": ({"scale": "x"}, regard.DtypeError, "scale: got str; needs a number"),
    "scale that learns": (
        {"scale": R((), requires_grad=True)},
        regard.DtypeError,
        "scale: requires a gradient",
    ),
    "causal": ({"is_causal": 1}, regard.DtypeError, "is_causal: got int; needs True or False"),
    "gqa": ({"enable_gqa": None, "dropout_p": 0.1}, regard.DtypeError, "enable_gqa: got NoneType"),
    "observe": ({"observe": "lse"}, regard.DtypeError, "observe: got str; needs regard.Observe"),
    "observed": (
        {"observe": regard.Observe(top=10)},
        regard.OptionError,
        "top: needs at most S = 9",
    ),
    "spans": (
        {"observe": regard.Observe(spans=(None, [[0, 10]]))},
        regard.ShapeError,
        "spans: a key span ends at 10",
    ),
}


@pytest.mark.once
class TestErrors:
    @pytest.mark.parametrize(("arrays", "options", "error", "words"), BAD.values(), ids=BAD)
    def test_of_arrays(
        self, arrays: list[Any], options: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            scaled_dot_product_attention(*arrays, **options)

    @pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
    def test_of_options(self, options: dict[str, Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            scaled_dot_product_attention(*qkv(2, 3), **options)
