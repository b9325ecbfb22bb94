"""Every bad argument: one error of the right type, with what came and what is needed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import regard
from regard import BackendError, DtypeError, LimitError, OptionError, ShapeError

pytestmark = pytest.mark.once

Q = np.zeros((2, 4, 6, 8), np.float32)
K = np.zeros((2, 2, 5, 8), np.float32)
V = np.zeros((2, 2, 5, 7), np.float32)
T = torch.from_numpy


def call(query: Any = Q, key: Any = K, value: Any = V, **options: Any) -> Callable[[], Any]:
    return lambda: regard.attention(query, key, value, **options)


def mask(m: Callable[[], Any]) -> Callable[[], Any]:
    """The mask is made within the call, so that its own errors count."""
    return lambda: regard.attention(Q, K, V, mask=m())


def observe(o: Callable[[], regard.Observe]) -> Callable[[], Any]:
    return lambda: regard.attention(Q, K, V, observe=o())


ARRAYS = [
    (call(query="text"), DtypeError, "query: got str; needs a NumPy array, a torch tensor"),
    (call(key=[[1.0]]), DtypeError, "key: got list; needs a NumPy array"),
    (call(value=None), DtypeError, "value: got None; needs an array"),
    (call(query=Q.astype(int)), DtypeError, "query: got dtype int64; needs one of float64"),
    (call(query=Q.astype(complex)), DtypeError, "query: got dtype complex128"),
    (call(query=Q.astype(">f4")), DtypeError, "query: got dtype >f4"),
    (call(key=K.astype(float)), DtypeError, "key: got dtype float64; needs query's float32"),
    (call(key=T(K)), DtypeError, "key: needs to be the same kind of array as query"),
    (call(T(Q), T(K).to("meta"), T(V)), DtypeError, "key: is on meta; needs query's cpu"),
    (call(query=Q[0, 0, 0]), ShapeError, r"query: got shape \(8,\); needs \(\*batch, heads, L, d"),
    (call(query=Q[0, 0]), ShapeError, "key: got 4 dimensions where query has 2"),
    (call(key=K[..., :7]), ShapeError, "key: got d_k = 7; needs query's 8"),
    (call(value=V[..., :4, :]), ShapeError, "value: got S = 4; needs key's 5"),
    (call(value=V[:, :1]), ShapeError, "value: got 1 heads; needs key's 2"),
    (call(query=Q[:, :3]), ShapeError, "query: got 3 heads; needs a multiple of key's 2"),
    (call(key=K[:, :0], value=V[:, :0]), ShapeError, "got 4 heads; needs a multiple of key's 0"),
    (
        call(query=np.concatenate([Q, Q[:1]])),
        ShapeError,
        r"batch dimensions do not fit: query \(3,\), key \(2,\)",
    ),
]

OPTIONS = [
    (call(score="dot"), DtypeError, r"score: got str; needs regard.additive\(vector\), or None"),
    (lambda: regard.additive([1.0]), DtypeError, "additive: vector: got list; needs a NumPy array"),
    (lambda: regard.additive(np.arange(8)), DtypeError, "additive: got a vector of int64; needs"),
    (
        call(score=regard.additive(Q[0, 0, :2])),
        ShapeError,
        r"vector of shape \(2, 8\); needs \(d,\) = \(8,\) or \(heads, d\) = \(4, 8\)",
    ),
    (call(scale=np.nan), OptionError, "scale: needs a number that float32 holds, got nan"),
    (call(scale=np.inf), OptionError, "scale: needs a number that float32 holds, got inf"),
    (call(scale="big"), DtypeError, "scale: got str; needs a number"),
    (
        call(softcap=0),
        OptionError,
        "softcap: needs a positive float32 number or None, got 0",
    ),
    (
        call(softcap=-1.0),
        OptionError,
        "softcap: needs a positive float32 number or None, got -1",
    ),
    (
        call(softcap=np.inf),
        OptionError,
        "softcap: needs a positive float32 number or None, got inf",
    ),
    (call(softcap=[1]), DtypeError, "softcap: got list; needs a number"),
    (call(dropout=1.0), OptionError, "dropout: needs 0 or more and less than 1, got 1"),
    (call(dropout=-0.1), OptionError, "dropout: needs 0 or more and less than 1, got -0.1"),
    (call(dropout="x"), DtypeError, "dropout: got str; needs a number"),
    (call(precision="low"), OptionError, "precision: got 'low'; needs one of highest, high"),
    (call(precision=None), OptionError, "precision: got None; needs one of highest, high"),
    (call(sinks=np.zeros(2, "f")), ShapeError, r"sinks: got shape \(2,\); needs \(heads,\) = \(4,"),
    (call(sinks=np.zeros(4, int)), DtypeError, "sinks: got dtype int64; needs one of float64"),
    (call(sinks=0.5), DtypeError, "sinks: got float; needs a NumPy array"),
    (call(observe=True), DtypeError, r"observe: got bool; needs regard.Observe\(...\) or None"),
    (
        call(T(Q), T(K), T(V), scale=torch.tensor(1.0, requires_grad=True)),
        DtypeError,
        "scale: requires a gradient",
    ),
    (
        call(sinks=torch.zeros(4, requires_grad=True)),
        DtypeError,
        "query: is a NumPy array, and sinks, bias or the score's vector is a tensor that ",
    ),
]

BACKENDS = [
    (call(backend="cuda"), OptionError, "got 'cuda'; needs one of native, blockwise, reference"),
    (call(backend=3), OptionError, "backend: got 3; needs one of"),
    (
        call(T(Q).clone().requires_grad_(), T(K), T(V), backend="reference"),
        BackendError,
        '"reference" cannot serve: .*gradient',
    ),
    (
        call(*(T(x).to("meta") for x in (Q, K, V)), backend="native"),
        BackendError,
        '"native" cannot serve: .*meta',
    ),
]

MASKS = [
    (mask(lambda: np.zeros((6, 5))), DtypeError, "mask: got dtype float64; needs bool"),
    (mask(lambda: "causal"), DtypeError, r'mask: got "causal"; needs a mask, as regard.causal\('),
    (mask(lambda: regard.causal), DtypeError, "mask: got causal, not called; needs a mask"),
    (mask(lambda: np.ones((6, 4), bool)), ShapeError, r"mask: got shape \(6, 4\); needs one that"),
    (mask(lambda: np.ones((9, 2, 4, 6, 5), bool)), ShapeError, "mask: got shape"),
    (mask(lambda: regard.causal("start")), OptionError, 'offset: got "start"; needs an int'),
    (mask(lambda: regard.causal(1.5)), DtypeError, "offset: got 1.5; needs an int"),
    (mask(lambda: regard.causal(np.zeros(2))), DtypeError, "offset: got dtype float64; needs int"),
    (mask(lambda: regard.causal(np.arange(3))), ShapeError, r"offset: got shape \(3,\)"),
    (mask(lambda: regard.window(-1)), OptionError, "window: left must be an int of 0 or more"),
    (mask(lambda: regard.window(1, -2)), OptionError, "window: right must be .* got -2"),
    (mask(lambda: regard.window(1.5)), OptionError, "window: left must be an int .* got 1.5"),
    (mask(lambda: regard.window("a")), OptionError, "window: left must be an int .* got 'a'"),
    (mask(lambda: regard.lengths(-1)), OptionError, "lengths: needs 0 or more keys, got -1"),
    (mask(lambda: regard.lengths(2.0)), DtypeError, "lengths: got float"),
    (mask(lambda: regard.lengths([1.0, 2.0])), DtypeError, "lengths: got dtype float64"),
    (mask(lambda: regard.lengths([1, 2, 3])), ShapeError, r"lengths: got shape \(3,\)"),
    (mask(lambda: regard.prefix([1, -2])), OptionError, "prefix: needs 0 or more keys, got -2"),
    (mask(lambda: regard.padding(np.ones(5))), DtypeError, "padding: keys: got dtype float64"),
    (mask(lambda: regard.padding(np.ones(4, bool))), ShapeError, "padding: keys: got shape"),
    (
        mask(lambda: regard.padding(np.ones(5, bool), np.ones(5, bool))),
        ShapeError,
        "padding: queries: got shape",
    ),
    (
        mask(lambda: regard.documents(np.zeros(6), np.zeros(5, int))),
        DtypeError,
        "documents: query_ids: got dtype float64; needs integers",
    ),
    (
        mask(lambda: regard.documents(np.zeros(6, int), np.zeros(6, int))),
        ShapeError,
        "documents: key_ids: got shape",
    ),
    (mask(lambda: regard.causal() & 3.0), DtypeError, "mask: got float; needs"),
]

BIASES = [
    (call(bias=np.zeros((6, 4), "f")), ShapeError, r"bias: got shape \(6, 4\); needs one that"),
    (call(bias=np.zeros(5, bool)), DtypeError, "bias: got dtype bool; needs one of float64"),
    (call(bias="x"), DtypeError, "bias: got str; needs a NumPy array"),
    (lambda: regard.alibi(np.arange(4)), DtypeError, "alibi: slopes: got dtype int64"),
    (call(bias=regard.alibi([1.0])), ShapeError, r"alibi: got slopes of shape \(1,\); needs \(4,"),
    (lambda: regard.alibi([1.0], offset="x"), OptionError, 'offset: got "x"; needs an int'),
    (lambda: regard.alibi([1.0], offset=[1, 2]), OptionError, "alibi: offset must be one int"),
    (lambda: regard.relative(np.zeros((3, 4))), OptionError, "relative: needs at least 4 buckets"),
    (
        lambda: regard.relative(np.zeros((32, 4)), max_distance=8),
        OptionError,
        "relative: max_distance must exceed the 8 exact buckets, got 8",
    ),
    (
        call(bias=regard.relative(np.zeros((32, 3), "f"))),
        ShapeError,
        r"relative: got a table of shape \(32, 3\); needs \(buckets, 4\)",
    ),
]

OBSERVATIONS = [
    (observe(lambda: regard.Observe(top=0)), OptionError, "top: needs 1 to 64 keys, got 0"),
    (observe(lambda: regard.Observe(top=65)), OptionError, "top: needs 1 to 64 keys, got 65"),
    (observe(lambda: regard.Observe(top=2.5)), OptionError, "top: needs 1 to 64 keys, got 2.5"),
    (observe(lambda: regard.Observe(top=True)), OptionError, "top: needs 1 to 64 keys, got True"),
    (observe(lambda: regard.Observe(top=6)), OptionError, "top: needs at most S = 5 keys, got 6"),
    (observe(lambda: regard.Observe(received="some")), OptionError, "received: needs .* 'some'"),
    (observe(lambda: regard.Observe(received=0)), OptionError, "received: needs .* got 0"),
    (observe(lambda: regard.Observe(received=1.5)), OptionError, "received: needs .* got 1.5"),
    (observe(lambda: regard.Observe(map=4)), OptionError, "map: needs .rows, columns. .* got 4"),
    (observe(lambda: regard.Observe(map=(0, 1))), OptionError, "map: needs .rows, columns"),
    (observe(lambda: regard.Observe(map=(1, 2, 3))), OptionError, "map: needs .rows, columns"),
    (observe(lambda: regard.Observe(map=("a", 1))), OptionError, "map: needs .rows, columns"),
    (
        observe(lambda: regard.Observe(map=(7, 5))),
        OptionError,
        r"map: needs at most \(L, S\) = \(6, 5\) bins, got \(7, 5\)",
    ),
    (observe(lambda: regard.Observe(spans=3)), ShapeError, "spans: needs .query_spans, key_spans"),
    (
        observe(lambda: regard.Observe(spans=([(0, 1)],))),
        ShapeError,
        "spans: needs .query_spans, key_spans",
    ),
    (
        observe(lambda: regard.Observe(spans=([(0, 1, 2)], None))),
        ShapeError,
        "spans: needs integers .n, 2.",
    ),
    (
        observe(lambda: regard.Observe(spans=([(0, 1), (2,)], None))),
        ShapeError,
        "spans: needs integers .n, 2.",
    ),
    (
        observe(lambda: regard.Observe(spans=([(0.5, 1)], None))),
        ShapeError,
        "spans: needs integers .n, 2.",
    ),
    (
        observe(lambda: regard.Observe(spans=([(3, 1)], None))),
        ShapeError,
        "spans: needs 0 <= start <= stop",
    ),
    (
        observe(lambda: regard.Observe(spans=(None, [(4, 6)]))),
        ShapeError,
        "spans: a key span ends at 6, past the 5 positions",
    ),
]

W = regard.weights(Q, K)
BIG = regard.weights(np.zeros((100_000, 1), np.float32), np.zeros((100_000, 1), np.float32))

WEIGHTS = [
    (lambda: W[2], IndexError, "leading index 2 is out of range for size 2"),
    (lambda: W[0, -5], IndexError, "leading index -5 is out of range for size 4"),
    (lambda: W[0, 0, 6], IndexError, "row 6 is out of range for size 6"),
    (lambda: W[0, 0, 0, -6], IndexError, "key -6 is out of range for size 5"),
    (lambda: W[0, 0, 0, 0, 0], IndexError, "got 5 indices for 4 dimensions"),
    (lambda: W[..., 0, ...], IndexError, "needs at most one `...`"),
    (lambda: W.row(9), IndexError, "row 9 is out of range"),
    (lambda: W[None], DtypeError, "got the index NoneType; needs ints, slices of ints, or `...`"),
    (lambda: W[True], DtypeError, "got the index bool"),
    (lambda: W[[0, 1]], DtypeError, "got the index list"),
    (lambda: W[1.0], DtypeError, "got the index float"),
    (lambda: W[0, 0, np.array([1, 2])], DtypeError, "got the index ndarray"),
    (lambda: W[0, 0, 1.5:], DtypeError, "got the index slice"),
    (lambda: W[0, 0, ::0], DtypeError, "got the index slice"),
    (lambda: W[::-1], OptionError, "a slice of batch or heads needs a positive step"),
    (lambda: W.pooled(7, 1), OptionError, "map: needs at most"),
    (lambda: W.pooled(0, 1), OptionError, "map: needs .rows, columns. of 1 or more"),
    (lambda: W.pooled(2, 2, window=((0, 1), (0, 5))), OptionError, "map: needs at most"),
    (lambda: W.pooled(1, 1, window=((0, 7), (0, 5))), OptionError, "window: needs 0 <= i0 < i1"),
    (lambda: W.pooled(1, 1, window=((2, 2), (0, 5))), OptionError, "window: needs 0 <= i0 < i1"),
    (lambda: W.pooled(1, 1, window=3), OptionError, "window: needs ..i0, i1., .j0, j1.., got 3"),
    (lambda: W.received(0), OptionError, "received: needs"),
    (lambda: W.top(6), OptionError, "top: needs at most S = 5 keys, got 6"),
    (lambda: np.asarray(BIG), LimitError, "10,000,000,000 numbers .* at most 67,108,864 .* pooled"),
    (lambda: BIG[:1000], LimitError, "100,000,000 numbers"),
    (lambda: regard.weights(Q, K, backend="x"), OptionError, "backend: got 'x'; needs one of"),
    (
        lambda: regard.weights(T(Q).clone().requires_grad_(), T(K)),
        DtypeError,
        "got a tensor that requires a gradient, and weights carry none",
    ),
    (
        lambda: regard.Weights(W.problem, lse=np.zeros((2, 4, 5))),
        ShapeError,
        r"lse: got shape \(2, 4, 5\); needs \(2, 4, 6\)",
    ),
]


def held() -> regard.Memory:
    memory = regard.Memory()
    memory.append([1.0, 2.0], [3.0])
    return memory


MEMORY = [
    (lambda: regard.Memory()[[1.0]], OptionError, "memory: holds no key yet"),
    (lambda: held()[[1.0]], ShapeError, "query: got size 1; needs 2, as the keys held"),
    (
        lambda: held()[np.zeros((1, 1, 2))],
        ShapeError,
        r"query: got shape \(1, 1, 2\); needs \(d,\)",
    ),
    (
        lambda: held()[np.float32([1, 2])],
        DtypeError,
        "query: got NumPy float32 on cpu; needs NumPy",
    ),
    (lambda: held()[torch.zeros(2)], DtypeError, "query: got torch float32 on cpu; needs NumPy"),
    (lambda: held()["x"], DtypeError, "query: got str; needs a NumPy array"),
    (lambda: held()[[[1.0], [2.0, 3.0]]], DtypeError, "query: needs an array or nested sequences"),
    (lambda: held()[np.array([1, 2])], DtypeError, "query: got dtype int64; needs one of"),
    (lambda: held().append([1.0], [3.0]), ShapeError, "key: got size 1; needs 2, as those held"),
    (lambda: held().append([1.0, 2.0], [3.0, 4.0]), ShapeError, "value: got size 2; needs 1"),
    (
        lambda: held().append([[1.0, 2.0]], [[3.0], [4.0]]),
        ShapeError,
        "value: got 2 values for 1 keys; needs as many",
    ),
    (lambda: held().append(torch.zeros(2), torch.zeros(1)), DtypeError, "key: got torch float32"),
    (lambda: held().look([1.0, 2.0], temperature=-1), OptionError, "temperature: needs 0, or"),
    (lambda: held().look([1.0, 2.0], temperature=1e-30), OptionError, "temperature: .* got 1e-30"),
    (lambda: held().look([1.0, 2.0], temperature=np.nan), OptionError, "temperature: .* got nan"),
    (lambda: held().look([1.0, 2.0], temperature="hot"), DtypeError, "temperature: got str; needs"),
    (lambda: held().look([1.0, 2.0], top=2), OptionError, "top: needs at most S = 1 keys, got 2"),
    (lambda: held().look([1.0, 2.0], top=0), OptionError, "top: needs 1 to 64 keys, got 0"),
]

TABLE = [
    pytest.param(*row, id=f"{name}-{n}")
    for name, rows in {
        "array": ARRAYS,
        "option": OPTIONS,
        "backend": BACKENDS,
        "mask": MASKS,
        "bias": BIASES,
        "observe": OBSERVATIONS,
        "weights": WEIGHTS,
        "memory": MEMORY,
    }.items()
    for n, row in enumerate(rows)
]


@pytest.mark.parametrize(("wrong", "error", "message"), TABLE)
def test_a_wrong_argument(wrong: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        wrong()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ShapeError, ValueError),
        (DtypeError, TypeError),
        (OptionError, ValueError),
        (BackendError, RuntimeError),
        (LimitError, MemoryError),
    ],
)
def test_errors_are_what_python_would_raise(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)
    assert issubclass(error, regard.RegardError)


def test_plan_refuses_what_attention_refuses() -> None:
    with pytest.raises(ShapeError, match="key: got d_k = 7"):
        regard.plan(Q, K[..., :7], V)
