"""`MultiHeadAttention` against its formula in float64, and against PyTorch's module."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.nn import (
    AdditiveAttention,
    KeyValueCache,
    MultiHeadAttention,
    MultiplicativeAttention,
    RotaryPositions,
    alibi_slopes,
)

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scrambled(module: Any) -> Any:
    """The module with biases and sinks that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module


def by_formula(
    module: Any, query: Tensor, key: Tensor, value: Tensor, shown: Tensor, added: Tensor | float = 0
) -> Tensor:
    """Head by head, in float64; `shown` and `added` broadcast to (batch, heads, L, S)."""
    module, query, key, value = module.double(), query.double(), key.double(), value.double()
    shape = (len(query), module.heads, query.shape[1], key.shape[1])
    shown, added = shown.expand(shape), torch.as_tensor(added).double().expand(shape)
    contexts = []
    for head in range(module.heads):
        kv = head * module.kv_heads // module.heads
        q = of_head(module.q_proj, query, head, module.d_k)
        k = of_head(module.k_proj, key, kv, module.d_k)
        v = of_head(module.v_proj, value, kv, module.d_v)
        if module.rotary is not None:
            q, k = turned(q), turned(k)
        scores = q @ k.mT / module.d_k**0.5 + added[:, head]
        scores = scores.masked_fill(~shown[:, head], -torch.inf)
        if module.sinks is not None:
            sink = module.sinks[head].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], -1)
        contexts.append(scores.softmax(-1)[..., : key.shape[1]] @ v)
    return torch.cat(contexts, -1) @ module.o_proj.weight.T + module.o_proj.bias


def of_head(projection: nn.Linear, x: Tensor, head: int, size: int) -> Tensor:
    here = slice(head * size, (head + 1) * size)
    return x @ projection.weight[here].T + projection.bias[here]


def turned(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Pairs of halves as complex numbers, times e^(i p / base^(2j/d))."""
    d = x.shape[-1]
    angles = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(0, d, 2).double() / d)
    result = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([result.real, result.imag], -1)


def lower(L: int, S: int | None = None) -> Tensor:
    return torch.ones(L, S or L, dtype=torch.bool).tril()


ALL = torch.tensor(True)
REAL = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
SOME = noise(2, 1, 6, 6, seed=3) > -0.5


class TestTheFormula:
    """Each head has projections of the whole input, and its scores are divided by √d_k."""

    def test_a_head_reads_the_whole_input_and_divides_by_its_own_size(self) -> None:
        """A widely read tutorial cuts the input in parts instead, and divides by √size."""
        module = MultiHeadAttention(8, 4, bias=False)
        assert [p.weight.shape for p in (module.q_proj, module.k_proj)] == [(8, 8), (8, 8)]
        x = torch.zeros(1, 2, 8)
        x[0, 0, 0], x[0, 1, 0] = 1.0, 2.0  # all is told by the first number of the input
        with torch.no_grad():
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                projection.weight.zero_()
                projection.weight[6, 0] = 1.0  # and read by the last head
            module.o_proj.weight.copy_(torch.eye(8))
        weight = torch.tensor([2.0, 4.0]).div(2**0.5).softmax(0)  # of query 1, d_k = 2
        found = module(x)[0, 1]
        torch.testing.assert_close(found[6], weight @ torch.tensor([1.0, 2.0]))
        assert not found[:6].any()

    @pytest.mark.parametrize(
        ("options", "given", "shown"),
        [
            ({}, {}, ALL),
            ({}, {"causal": True}, lower(6)),
            ({}, {"padding": REAL}, REAL[:, None, None]),
            ({}, {"mask": SOME}, SOME),
            (
                {},
                {"mask": SOME, "padding": REAL, "causal": True},
                SOME & REAL[:, None, None] & lower(6),
            ),
            (
                {},
                {"mask": regard.window(2, 0)},
                lower(6).triu(-2),
            ),
            ({"kv_heads": 2}, {"causal": True}, lower(6)),
            ({"kv_heads": 1, "d_k": 3, "d_v": 7}, {}, ALL),
            (
                {"sinks": True, "kv_heads": 2},
                {"causal": True, "padding": REAL},
                REAL[:, None, None] & lower(6),
            ),
            ({"rotary": RotaryPositions(4)}, {"causal": True}, lower(6)),
        ],
        ids=[
            "plain",
            "causal",
            "padding",
            "mask",
            "all three",
            "window",
            "grouped",
            "sizes",
            "sinks",
            "rotary",
        ],
    )
    def test_self_attention(
        self, options: dict[str, Any], given: dict[str, Any], shown: Tensor
    ) -> None:
        module, x = scrambled(MultiHeadAttention(16, 4, **options)), noise(2, 6, 16)
        found = module(x, **given)
        expected = by_formula(module, x, x, x, shown)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)

    def test_alibi(self) -> None:
        module, x = scrambled(MultiHeadAttention(16, 4, alibi=True)), noise(2, 6, 16)
        distance = (torch.arange(6) - torch.arange(6)[:, None]).abs()
        found = module(x, causal=True)
        added = -alibi_slopes(4)[:, None, None] * distance
        expected = by_formula(module, x, x, x, lower(6), added)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)

    @pytest.mark.parametrize("projected", [False, True])
    def test_cross_attention_of_other_sizes(self, projected: bool) -> None:
        module = scrambled(MultiHeadAttention(16, 4, kv_heads=2, key_size=10, value_size=12, d_v=5))
        x, key, value = noise(2, 4, 16), noise(2, 6, 10, seed=1), noise(2, 6, 12, seed=2)
        given = module.project(key, value) if projected else (key, value)
        found = module(x, *given, padding=REAL, projected=projected)
        expected = by_formula(module, x, key, value, REAL[:, None, None])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)

    def test_any_batch(self) -> None:
        module, x = MultiHeadAttention(16, 4), noise(2, 3, 5, 16)
        found = module(x, causal=True)
        torch.testing.assert_close(found[1, 2], module(x[1, 2], causal=True))
        assert found.shape == x.shape

    @pytest.mark.parametrize(
        "options", [{}, {"alibi": True, "sinks": True}, {"rotary": RotaryPositions(2)}]
    )
    def test_gradients(self, options: dict[str, Any]) -> None:
        module = scrambled(MultiHeadAttention(4, 2, **options)).double()
        x = noise(1, 3, 4).double().requires_grad_()
        names, values = zip(*module.named_parameters(), strict=True)

        def call(x: Tensor, *weights: Tensor) -> Any:
            return torch.func.functional_call(
                module, dict(zip(names, weights, strict=True)), (x,), {"causal": True}
            )

        assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


class TestAsPyTorch:
    @pytest.mark.parametrize(
        "options",
        [{}, {"kdim": 10, "vdim": 12}, {"bias": False}],
        ids=["packed", "separate", "no bias"],
    )
    def test_output_and_gradients_with_its_weights(self, options: dict[str, Any]) -> None:
        theirs = scrambled(nn.MultiheadAttention(16, 4, batch_first=True, **options))
        ours = MultiHeadAttention.from_torch(theirs)
        x = noise(2, 5, 16)
        key, value = noise(2, 6, theirs.kdim, seed=1), noise(2, 6, theirs.vdim, seed=2)
        expected = theirs(x, key, value, key_padding_mask=~REAL)[0]
        found = ours(x, key, value, padding=REAL)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(ours.o_proj.weight.grad, theirs.out_proj.weight.grad)
        if theirs.in_proj_weight is not None:
            joined = [p.weight.grad for p in (ours.q_proj, ours.k_proj, ours.v_proj)]
            torch.testing.assert_close(torch.cat(joined), theirs.in_proj_weight.grad)

    def test_the_weights_are_copies(self) -> None:
        theirs = nn.MultiheadAttention(16, 4)
        ours, before = MultiHeadAttention.from_torch(theirs), theirs.in_proj_weight.clone()
        with torch.no_grad():
            ours.q_proj.weight.zero_()
        assert torch.equal(theirs.in_proj_weight, before)

    @pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
    def test_keys_of_its_own_are_refused(self, option: str) -> None:
        theirs = nn.MultiheadAttention(16, 4, **{option: True})
        with pytest.raises(regard.ModelError, match="from_torch: the module adds a key"):
            MultiHeadAttention.from_torch(theirs)

    @pytest.mark.parametrize(
        ("family", "options"),
        [("llama", {"bias": False}), ("qwen2", {"bias": True, "output_bias": False})],
    )
    def test_weights_of_others_load_as_they_are(
        self, family: str, options: dict[str, bool]
    ) -> None:
        """Their attention, with the same weights, computes the same."""
        theirs, turns, x = their_attention(family)
        ours = MultiHeadAttention(16, 4, kv_heads=2, rotary=RotaryPositions(4), **options)
        ours.load_state_dict(theirs.state_dict())
        expected = theirs(x, position_embeddings=turns, attention_mask=None)[0]
        torch.testing.assert_close(ours(x, causal=True), expected, rtol=1e-5, atol=1e-6)


def their_attention(family: str) -> tuple[torch.nn.Module, Any, torch.Tensor]:
    """One of transformers, the turns of its positions, and an input."""
    from transformers import LlamaConfig, Qwen2Config
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.qwen2 import modeling_qwen2 as qwen2

    sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"hidden_size": 16, "attn_implementation": "sdpa"}
    x, positions = noise(2, 6, 16), torch.arange(6)[None]
    if family == "llama":
        config: Any = LlamaConfig(**sizes)
        turns = llama.LlamaRotaryEmbedding(config)(x, positions)
        return llama.LlamaAttention(config, 0).eval(), turns, x
    config = Qwen2Config(**sizes)
    turns = qwen2.Qwen2RotaryEmbedding(config)(x, positions)
    attention = qwen2.Qwen2Attention(config, 0).eval()
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        torch.nn.init.normal_(projection.bias)
    return attention, turns, x


class TestCache:
    @pytest.mark.parametrize(
        "options",
        [{}, {"rotary": RotaryPositions(4)}, {"alibi": True}, {"sinks": True}, {"kv_heads": 2}],
        ids=["plain", "rotary", "alibi", "sinks", "grouped"],
    )
    @pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1, 1), (3, 3), (2, 1, 3)])
    def test_parts_are_the_whole(self, options: dict[str, Any], cuts: tuple[int, ...]) -> None:
        module, x, cache = MultiHeadAttention(16, 4, **options), noise(2, 6, 16), KeyValueCache()
        parts = [module(part, causal=True, cache=cache) for part in x.split(cuts, 1)]
        torch.testing.assert_close(
            torch.cat(parts, 1), module(x, causal=True), rtol=1e-5, atol=1e-6
        )
        assert len(cache) == 6

    def test_reordered(self) -> None:
        module, x, cache = MultiHeadAttention(16, 4), noise(3, 6, 16), KeyValueCache()
        module(x[:, :4], causal=True, cache=cache)
        order = torch.tensor([2, 0, 0, 1])
        cache.reorder(order)
        found = module(x[order, 4:], causal=True, cache=cache)
        torch.testing.assert_close(found, module(x, causal=True)[order, 4:])

    def test_an_empty_one_is_reordered(self) -> None:
        cache = KeyValueCache()
        cache.reorder(torch.tensor([0]))
        assert len(cache) == 0


@pytest.mark.parametrize("options", [{}, {"alibi": True}, {"rotary": RotaryPositions(4)}])
def test_nothing_to_read(options: dict[str, Any]) -> None:
    module = MultiHeadAttention(16, 4, **options)
    assert module(noise(2, 0, 16), causal=True).shape == (2, 0, 16)
    assert module(noise(0, 3, 16), padding=REAL[:0, :3]).shape == (0, 3, 16)
    without_keys = module(noise(2, 3, 16), noise(2, 0, 16), padding=REAL[:, :0])
    assert torch.equal(without_keys, module.o_proj.bias.expand(2, 3, 16))


def test_dropout_only_in_training() -> None:
    module, x = MultiHeadAttention(16, 4, dropout=0.5), noise(2, 6, 16)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("options", [{}, {"alibi": True}])
def test_observed(options: dict[str, Any]) -> None:
    module, x = MultiHeadAttention(16, 4, **options), noise(2, 6, 16)
    result, seen = module(x, causal=True, observe=regard.Observe(entropy=True, received="all"))
    assert seen.entropy.shape == (2, 4, 6)
    torch.testing.assert_close(seen.received.sum(-1), torch.full((2, 4), 6.0))
    torch.testing.assert_close(result, module(x, causal=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "size: got 16; needs a multiple of heads, 3, or d_k given"),
        ({"kv_heads": 3}, "heads: got 4; needs a multiple of kv_heads, 3"),
        ({"dropout": 1.0}, "dropout: needs 0 or more and less than 1, got 1.0"),
        ({"rotary": RotaryPositions(8)}, "rotary: is made for d_k = 8; needs 4"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(regard.OptionError, match=message):
        MultiHeadAttention(16, **{"heads": 4} | options)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"query": noise(2, 6, 8)},
            regard.ShapeError,
            r"query: got shape \(2, 6, 8\); needs \(..., length, 16\)",
        ),
        ({"key": noise(2, 6, 8)}, regard.ShapeError, r"key: got shape \(2, 6, 8\)"),
        ({"mask": noise(6, 6)}, regard.DtypeError, "mask: got dtype torch.float32; needs booleans"),
        ({"padding": noise(2, 6)}, regard.DtypeError, "padding: got dtype torch.float32"),
        ({"mask": lower(5)}, regard.ShapeError, r"needs one that broadcasts to \(2, 4, 6, 6\)"),
        (
            {"projected": True},
            regard.OptionError,
            "projected: needs both key and value, and no cache",
        ),
        (
            {"projected": True, "key": noise(2, 1, 6, 4), "value": noise(2, 4, 6, 4)},
            regard.ShapeError,
            r"key: got shape \(2, 1, 6, 4\); needs \(..., 4, length, 4\), as `project` makes them",
        ),
        (
            {"projected": True, "key": noise(2, 4, 6, 4), "value": noise(2, 4, 6, 3)},
            regard.ShapeError,
            r"value: got shape \(2, 4, 6, 3\); needs \(..., 4, length, 4\)",
        ),
        (
            {"key": noise(3, 6, 16), "padding": REAL},
            regard.ShapeError,
            r"key: got batch \(3,\); needs query's \(2,\)",
        ),
    ],
)
def test_arguments_that_do_not_fit(given: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        MultiHeadAttention(16, 4)(**{"query": noise(2, 6, 16)} | given)


@pytest.mark.parametrize("options", [{}, {"rotary": RotaryPositions(4), "kv_heads": 2}])
def test_compiled_in_one_piece(options: dict[str, Any]) -> None:
    module, x = MultiHeadAttention(16, 4, **options), noise(2, 6, 16)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    found = compiled(x, causal=True, padding=REAL)
    torch.testing.assert_close(found, module(x, causal=True, padding=REAL))


# PyTorch looks at .grad of what it goes on with, and hides the warning unless it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_around_what_the_compiler_does_not_see() -> None:
    module, x = MultiHeadAttention(16, 4, alibi=True), noise(2, 6, 16)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(x, causal=True), module(x, causal=True))


def test_parameters_are_where_and_what_is_asked() -> None:
    made = (
        MultiHeadAttention(8, 2, sinks=True, device="meta", dtype=torch.float64),
        MultiplicativeAttention(8, 8, device="meta", dtype=torch.float64),
        AdditiveAttention(8, 8, 8, device="meta", dtype=torch.float64),
    )
    for x in [x for module in made for x in module.parameters()]:
        assert (x.device.type, x.dtype) == ("meta", torch.float64)
    attention = MultiHeadAttention(8, 2, alibi=True, device="meta")
    assert attention.slopes is not None
    assert attention.slopes.device.type == "meta"
