"""The Transformer against PyTorch's, with its weights; and written step by step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.nn import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    RotaryPositions,
    Transformer,
)
from regard.nn._drop import dropout

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

SOURCE = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
TARGET = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(2))
SOURCE_REAL = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
TARGET_REAL = torch.arange(6) < torch.tensor([6, 5, 2])[:, None]


def twins(pre_norm: bool, activation: str) -> tuple[Transformer, nn.Transformer]:
    """Ours and PyTorch's, with the same weights."""
    torch.manual_seed(0)
    ours = Transformer(16, 4, 2, 2, 24, pre_norm=pre_norm, activation=activation, dropout=0.0)
    theirs = nn.Transformer(16, 4, 2, 2, 24, 0.0, activation, batch_first=True, norm_first=pre_norm)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    for mine, their in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        if pre_norm:
            mine.norm.load_state_dict(their.norm.state_dict())
        else:
            their.norm = None  # the paper has none
        for a, b in zip(mine.layers, their.layers, strict=True):
            copy_layer(a, b)
    return ours, theirs


def copy_layer(ours: Any, theirs: Any) -> None:
    pairs = [(ours.self_attention, theirs.self_attn)]
    if isinstance(ours, DecoderLayer):
        pairs.append((ours.cross_attention, theirs.multihead_attn))
    for mine, their in pairs:
        mine.load_state_dict(MultiHeadAttention.from_torch(their).state_dict())
    ours.feed_forward.up.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.down.load_state_dict(theirs.linear2.state_dict())
    for n, norm in enumerate(ours.norms):
        norm.load_state_dict(getattr(theirs, f"norm{n + 1}").state_dict())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_output_and_gradients_are_pytorchs(pre_norm: bool, activation: str) -> None:
    ours, theirs = twins(pre_norm, activation)
    found = ours(SOURCE, TARGET, SOURCE_REAL, TARGET_REAL)
    expected = theirs(
        SOURCE,
        TARGET,
        tgt_mask=torch.ones(6, 6).tril() == 0,
        src_key_padding_mask=~SOURCE_REAL,
        memory_key_padding_mask=~SOURCE_REAL,
        tgt_key_padding_mask=~TARGET_REAL,
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for output in (found, expected):
        output[TARGET_REAL].square().sum().backward()
    pairs = [
        (ours.encoder.layers[0].feed_forward.up, theirs.encoder.layers[0].linear1),
        (ours.decoder.layers[1].feed_forward.down, theirs.decoder.layers[1].linear2),
        (
            ours.decoder.layers[0].cross_attention.o_proj,
            theirs.decoder.layers[0].multihead_attn.out_proj,
        ),
    ]
    for mine, their in pairs:
        torch.testing.assert_close(mine.weight.grad, their.weight.grad, rtol=1e-4, atol=1e-5)


def model(**options: Any) -> Transformer:
    torch.manual_seed(3)
    return Transformer(16, 4, 2, 2, 24, **options).eval()


OPTIONS = {
    "pre-norm": {},
    "post-norm": {"pre_norm": False},
    "swiglu, grouped, rotary": {
        "activation": "swiglu",
        "kv_heads": 2,
        "rotary": RotaryPositions(4),
    },
}


class TestStepByStep:
    @pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1, 1), (2, 3, 1)])
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_steps_are_the_whole(self, options: dict[str, Any], cuts: tuple[int, ...]) -> None:
        transformer = model(**options)
        memory, cache = transformer.encode(SOURCE, SOURCE_REAL), transformer.new_cache()
        steps = [
            transformer.decode(part, memory, memory_mask=SOURCE_REAL, cache=cache)
            for part in TARGET.split(cuts, 1)
        ]
        whole = transformer(SOURCE, TARGET, SOURCE_REAL)
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=2e-6)
        assert len(cache) == 6

    def test_what_is_written_greedily_is_what_was_read(self) -> None:
        """Each output is the next input; reading them all at once gives the outputs again."""
        transformer, read = model(), [TARGET[:, :1]]
        memory, cache = transformer.encode(SOURCE, SOURCE_REAL), transformer.new_cache()
        for _ in range(5):
            options = {"memory_mask": SOURCE_REAL, "cache": cache}
            read.append(transformer.decode(read[-1], memory, **options))
        whole = transformer.decode(torch.cat(read[:-1], 1), memory, memory_mask=SOURCE_REAL)
        torch.testing.assert_close(whole, torch.cat(read[1:], 1), rtol=1e-5, atol=2e-6)

    def test_entries_change_places_with_their_sources(self) -> None:
        transformer, order = model(), torch.tensor([2, 0, 0, 1])
        memory, cache = transformer.encode(SOURCE, SOURCE_REAL), transformer.new_cache()
        transformer.decode(TARGET[:, :4], memory, memory_mask=SOURCE_REAL, cache=cache)
        cache.reorder(order)
        found = transformer.decode(TARGET[order, 4:], memory, cache=cache)
        whole = transformer(SOURCE, TARGET, SOURCE_REAL)
        torch.testing.assert_close(found, whole[order, 4:], rtol=1e-5, atol=2e-6)

    def test_beams_of_one_source_change_places(self) -> None:
        transformer, order = model(), torch.tensor([1, 0, 1])
        source, real = SOURCE[:1].expand(3, -1, -1), SOURCE_REAL[1:2].expand(3, -1)
        memory, cache = transformer.encode(source, real), transformer.new_cache()
        transformer.decode(TARGET[:, :4], memory, memory_mask=real, cache=cache)
        held = cache.layers[0].memory.key
        cache.reorder(order, memory=False)
        found = transformer.decode(TARGET[order, 4:], memory, memory_mask=real, cache=cache)
        whole = transformer(source, TARGET, real)
        torch.testing.assert_close(found, whole[order, 4:], rtol=1e-5, atol=2e-6)
        assert cache.layers[0].memory.key is held

    def test_a_padded_target_goes_on(self) -> None:
        transformer, cache = model(), None
        real = torch.tensor([[True] * 6, [False, True, True, True, True, True], [True] * 6])
        memory, cache = transformer.encode(SOURCE), transformer.new_cache()
        steps = [
            transformer.decode(TARGET[:, a:b], memory, target_mask=real[:, :b], cache=cache)
            for a, b in ((0, 3), (3, 4), (4, 6))
        ]
        whole = transformer(SOURCE, TARGET, target_mask=real)
        torch.testing.assert_close(torch.cat(steps, 1)[real], whole[real], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("filled", [1e3, torch.nan])
def test_padding_changes_nothing(filled: float) -> None:
    """A text alone, and beside a longer one, whatever stands in its padding."""
    transformer = model()
    alone = transformer(SOURCE[1:2, :4], TARGET[1:2, :5])
    source = SOURCE.masked_fill(~SOURCE_REAL[..., None], filled)
    target = TARGET.masked_fill(~TARGET_REAL[..., None], filled)
    beside = transformer(source, target, SOURCE_REAL, TARGET_REAL)
    torch.testing.assert_close(beside[1:2, :5], alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("empty", ["batch", "source", "target"])
def test_nothing_to_read(empty: str) -> None:
    transformer = model(rotary=RotaryPositions(4)).train()
    B, S, T = (0 if name == empty else 3 for name in ("batch", "source", "target"))
    source, target = SOURCE[:B, :S], TARGET[:B, :T]
    real = torch.ones(B, S, dtype=torch.bool)
    found = transformer(source, target, real)
    assert found.shape == (B, T, 16)
    assert found.isfinite().all()
    found.sum().backward()


def test_dropout_under_vmap() -> None:
    """Each entry drops its own, as with PyTorch's modules."""
    transformer = model(dropout=0.5).train()
    sources, targets = (x[:1].expand(2, 1, -1, -1) for x in (SOURCE, TARGET))
    first, second = torch.vmap(transformer, randomness="different")(sources, targets)
    assert first.shape == (1, 6, 16)
    assert not torch.equal(first, second)


def test_gradients_of_a_layer_each() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu"}
    encoder = EncoderLayer(4, 2, 5, **options).double()
    decoder = DecoderLayer(4, 2, 5, **options, pre_norm=False).double()
    x, memory = (torch.randn(1, n, 4).double().requires_grad_() for n in (3, 2))
    assert torch.autograd.gradcheck(encoder, (x,), fast_mode=True)
    assert torch.autograd.gradcheck(decoder, (x, memory), fast_mode=True)


class TestDropout:
    def test_chance_and_mean(self) -> None:
        torch.manual_seed(0)
        x = torch.ones(500, 1001)
        for chance in (0.1, 0.5, 0.9):
            found = dropout(x, chance, True)
            share = float((found == 0).float().mean())
            assert abs(share - chance) < 4 * (chance * (1 - chance) / x.numel()) ** 0.5
            kept = found[found != 0]
            torch.testing.assert_close(
                kept, torch.full_like(kept, 1 / (1 - chance)), rtol=1e-4, atol=0
            )

    def test_rows_and_columns_are_independent(self) -> None:
        torch.manual_seed(0)
        dropped = (dropout(torch.ones(4000, 64), 0.3, True) == 0).double()
        together = torch.corrcoef(dropped.T) - torch.eye(64)
        assert float(together.abs().max()) < 6 / 4000**0.5

    def test_gradients_go_where_numbers_did(self) -> None:
        x = torch.randn(5, 7, requires_grad=True)
        found = dropout(x, 0.4, True)
        found.sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad * x, found)

    def test_the_seed_decides(self) -> None:
        found = []
        for _ in range(2):
            torch.manual_seed(5)
            found.append(dropout(torch.ones(3, 5), 0.5, True))
        assert torch.equal(*found)

    @pytest.mark.parametrize(("chance", "training"), [(0.5, False), (0.0, True)])
    def test_none(self, chance: float, training: bool) -> None:
        x = torch.ones(3)
        assert dropout(x, chance, training) is x

    def test_of_the_model_only_in_training(self) -> None:
        transformer = model(dropout=0.3)
        assert torch.equal(transformer(SOURCE, TARGET), transformer(SOURCE, TARGET))
        transformer.train()
        assert not torch.equal(transformer(SOURCE, TARGET), transformer(SOURCE, TARGET))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: FeedForward(4, 4, activation="tanh"),
            regard.OptionError,
            "activation: got 'tanh'",
        ),
        (lambda: model(dropout=1), regard.OptionError, "dropout: needs 0 or more and less than 1"),
        (
            lambda: model()(SOURCE, TARGET, TARGET_REAL),
            regard.ShapeError,
            r"source_mask: got shape \(3, 6\); needs \(3, 7\)",
        ),
        (
            lambda: model()(SOURCE, TARGET, SOURCE_REAL.float()),
            regard.DtypeError,
            "source_mask: got dtype torch.float32; needs booleans",
        ),
        (
            lambda: model().decode(TARGET, SOURCE, memory_mask=TARGET_REAL),
            regard.ShapeError,
            r"memory_mask: got shape \(3, 6\); needs \(3, 7\)",
        ),
        (
            lambda: model()(SOURCE[..., :8], TARGET),
            regard.ShapeError,
            r"source: got shape \(3, 7, 8\); needs \(..., length, 16\)",
        ),
        (
            lambda: model()(SOURCE, TARGET[..., :8]),
            regard.ShapeError,
            r"target: got shape \(3, 6, 8\); needs \(..., length, 16\)",
        ),
        (
            lambda: EncoderLayer(16, 4, 24)(SOURCE[..., :8]),
            regard.ShapeError,
            r"x: got shape \(3, 7, 8\); needs \(..., length, 16\)",
        ),
        (
            lambda: DecoderLayer(16, 4, 24)(TARGET, SOURCE[..., :8]),
            regard.ShapeError,
            r"memory: got shape \(3, 7, 8\); needs \(..., length, 16\)",
        ),
        (
            lambda: model()(SOURCE, TARGET, None, SOURCE_REAL),
            regard.ShapeError,
            r"target_mask: got shape \(3, 7\); needs \(3, 6\)",
        ),
    ],
)
def test_what_does_not_fit(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_compiled_in_one_piece() -> None:
    transformer = Transformer(16, 4, 1, 1, 24, dropout=0.0)
    torch.compiler.reset()
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    found: Tensor = compiled(SOURCE, TARGET, SOURCE_REAL)
    torch.testing.assert_close(found, transformer(SOURCE, TARGET, SOURCE_REAL))


def test_a_model_of_any_batch_is_exported() -> None:
    model = Transformer(32, heads=4, encoder_layers=1, decoder_layers=1, inner=64).eval()
    batch = {0: torch.export.Dim("batch", max=256)}
    given = torch.randn(3, 7, 32), torch.randn(3, 5, 32)
    exported = torch.export.export(model, given, dynamic_shapes=(batch, batch)).module()
    other = torch.randn(20, 7, 32), torch.randn(20, 5, 32)
    torch.testing.assert_close(exported(*other), model(*other))
