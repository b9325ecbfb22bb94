"""The recurrent encoder-decoder: its formulas, padding, and steps that are the whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.nn import MultiplicativeAttention, Recurrent, RecurrentDecoder, RecurrentEncoder

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

GENERATOR = torch.Generator().manual_seed(6)
SOURCE = torch.randn(3, 7, 8, generator=GENERATOR)
TARGET = torch.randn(3, 6, 8, generator=GENERATOR)
MEMORY = torch.randn(3, 7, 16, generator=GENERATOR)
REAL = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
KINDS: dict[str, dict[str, Any]] = {
    "fixed summary": {"attention": None},
    "fixed summary, LSTM": {"attention": None, "cell": "lstm", "decoder_layers": 2},
    "additive": {"attention": "additive", "hidden": 6},
    "multiplicative, LSTM": {
        "attention": "multiplicative",
        "cell": "lstm",
        "encoder_layers": 2,
        "decoder_layers": 2,
    },
}
of_every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def model(**options: Any) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(8, **options).eval()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_encoder_reads_each_source_as_if_alone(cell: str) -> None:
    encoder = RecurrentEncoder(8, 5, cell=cell, layers=2)
    states = encoder(SOURCE, REAL)
    assert states.shape == (3, 7, 10)
    for entry, length in enumerate(REAL.sum(-1)):
        alone = encoder(SOURCE[entry : entry + 1, :length])
        torch.testing.assert_close(states[entry, :length], alone[0])
        assert not states[entry, length:].any()


def test_a_step_is_bahdanaus() -> None:
    """The state before asks, the context enters with the input, all three are read out."""
    attention = MultiplicativeAttention(5, 10)
    decoder = RecurrentDecoder(8, 10, 5, attention=attention)
    memory = RecurrentEncoder(8, 5)(SOURCE, REAL)
    assert decoder.cell is not None
    gru, outputs = decoder.cell.layers[0], []
    last = memory[torch.arange(3), REAL.sum(-1) - 1, :5]
    state = torch.tanh(decoder.first(torch.cat([last, memory[:, 0, 5:]], -1)))
    for x in TARGET.unbind(1):
        scores = (state[:, None] @ attention.weight @ memory.mT)[:, 0]
        context = (scores.masked_fill(~REAL, -torch.inf).softmax(-1)[:, None] @ memory)[:, 0]
        state = gru(torch.cat([x, context], -1), state)
        outputs.append(torch.tanh(decoder.readout(torch.cat([state, context, x], -1))))
    found = decoder(TARGET, memory, memory_mask=REAL)
    torch.testing.assert_close(found, torch.stack(outputs, 1), rtol=1e-5, atol=1e-6)


def test_a_fixed_summary_is_all_that_is_known_of_the_source() -> None:
    """It begins the state and enters every step; states between change nothing."""
    decoder = RecurrentDecoder(8, 10, 5)
    memory = RecurrentEncoder(8, 5)(SOURCE, REAL)
    last = memory[torch.arange(3), REAL.sum(-1) - 1, :5]
    summary = torch.cat([last, memory[:, 0, 5:]], -1)
    assert decoder.rnn is not None
    cell = nn.GRUCell(18, 5)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(decoder.rnn, f"{name}_l0").data
    state, outputs = torch.tanh(decoder.first(summary)), []
    for x in TARGET.unbind(1):
        state = cell(torch.cat([x, summary], -1), state)
        outputs.append(torch.tanh(decoder.readout(torch.cat([state, summary, x], -1))))
    found = decoder(TARGET, memory, memory_mask=REAL)
    torch.testing.assert_close(found, torch.stack(outputs, 1), rtol=1e-5, atol=1e-6)
    memory = memory.clone()
    memory[:, 1:3] = torch.nan
    assert torch.equal(decoder(TARGET, memory, memory_mask=REAL), found)


@of_every_kind
def test_padding_changes_nothing(options: dict[str, Any]) -> None:
    recurrent = model(**options)
    alone = recurrent(SOURCE[1:2, :4], TARGET[1:2])
    beside = recurrent(SOURCE, TARGET, REAL)[1:2]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-6)


class TestStepByStep:
    @of_every_kind
    @pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1, 1), (2, 3, 1)])
    def test_steps_are_the_whole(self, options: dict[str, Any], cuts: tuple[int, ...]) -> None:
        recurrent = model(**options)
        memory, cache = recurrent.encode(SOURCE, REAL), recurrent.new_cache()
        steps = [
            recurrent.decode(part, memory, memory_mask=REAL, cache=cache)
            for part in TARGET.split(cuts, 1)
        ]
        whole = recurrent(SOURCE, TARGET, REAL)
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-6)
        assert len(cache) == 6

    @of_every_kind
    def test_entries_change_places_with_their_sources(self, options: dict[str, Any]) -> None:
        recurrent, order = model(**options), torch.tensor([2, 0, 0, 1])
        memory, cache = recurrent.encode(SOURCE, REAL), recurrent.new_cache()
        recurrent.decode(TARGET[:, :4], memory, memory_mask=REAL, cache=cache)
        cache.reorder(order)
        found = recurrent.decode(TARGET[order, 4:], memory, cache=cache)
        whole = recurrent(SOURCE, TARGET, REAL)
        torch.testing.assert_close(found, whole[order, 4:], rtol=1e-5, atol=1e-6)

    @of_every_kind
    def test_beams_of_one_source_change_places(self, options: dict[str, Any]) -> None:
        recurrent, order = model(**options), torch.tensor([1, 0, 1])
        source, real = SOURCE[:1].expand(3, -1, -1), REAL[1:2].expand(3, -1)
        memory, cache = recurrent.encode(source, real), recurrent.new_cache()
        recurrent.decode(TARGET[:, :4], memory, memory_mask=real, cache=cache)
        held = cache.memory
        cache.reorder(order, memory=False)
        found = recurrent.decode(TARGET[order, 4:], memory, cache=cache)
        whole = recurrent(source, TARGET, real)
        torch.testing.assert_close(found, whole[order, 4:], rtol=1e-5, atol=1e-6)
        assert cache.memory is held

    @of_every_kind
    def test_nothing_to_read(self, options: dict[str, Any]) -> None:
        recurrent = model(**options)
        assert recurrent(SOURCE, TARGET[:, :0], REAL).shape == (3, 0, 8)

    @of_every_kind
    def test_a_padded_target_goes_on(self, options: dict[str, Any]) -> None:
        """Its mask is of all positions, those of earlier calls included, as a Transformer's."""
        recurrent, real = model(**options), torch.arange(6) < torch.tensor([6, 0, 4])[:, None]
        memory, cache = recurrent.encode(SOURCE), recurrent.new_cache()
        steps = [
            recurrent.decode(TARGET[:, a:b], memory, target_mask=real[:, :b], cache=cache)
            for a, b in ((0, 3), (3, 6))
        ]
        whole = recurrent(SOURCE, TARGET, target_mask=real)
        torch.testing.assert_close(torch.cat(steps, 1)[real], whole[real])
        with pytest.raises(regard.ShapeError, match=r"target_mask: .* needs \(3, 9\)"):
            recurrent.decode(TARGET[:, :3], memory, target_mask=real[:, :3], cache=cache)
        assert len(cache) == 6

    @of_every_kind
    def test_a_cache_of_another_batch(self, options: dict[str, Any]) -> None:
        recurrent = model(**options)
        memory, cache = recurrent.encode(SOURCE), recurrent.new_cache()
        recurrent.decode(TARGET[:, :3], memory, cache=cache)
        with pytest.raises(regard.ShapeError, match=r"cache: is of batch \(3,\); the target's is"):
            recurrent.decode(TARGET[:2, 3:], memory, cache=cache)
        found = recurrent.decode(TARGET[:, 3:], memory, cache=cache)
        torch.testing.assert_close(found, recurrent(SOURCE, TARGET)[:, 3:])


@of_every_kind
def test_a_batch_of_none(options: dict[str, Any]) -> None:
    assert model(**options)(SOURCE[:0], TARGET[:0], REAL[:0]).shape == (0, 6, 8)


@of_every_kind
def test_gradients(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    small = {"hidden": 2, "dropout": 0.0}
    recurrent = Recurrent(3, **options | small).double()
    source, target = (x[:2, :3, :3].double().requires_grad_() for x in (SOURCE, TARGET))
    real = torch.tensor([[True, True, True], [True, True, False]])

    def call(source: Tensor, target: Tensor, *_: Tensor) -> Any:
        return recurrent(source, target, real)

    assert torch.autograd.gradcheck(call, (source, target, *recurrent.parameters()), fast_mode=True)


def test_dropout_only_in_training() -> None:
    recurrent = model(attention="multiplicative", dropout=0.4)
    assert torch.equal(recurrent(SOURCE, TARGET), recurrent(SOURCE, TARGET))
    recurrent.train()
    assert not torch.equal(recurrent(SOURCE, TARGET), recurrent(SOURCE, TARGET))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: model(attention="dot"), regard.OptionError, "attention: got 'dot'; needs"),
        (lambda: model(cell="rnn"), regard.OptionError, "cell: got 'rnn'; needs one of gru, lstm"),
        (lambda: model(dropout=-0.1), regard.OptionError, "dropout: needs 0 or more"),
        (
            lambda: model().encode(SOURCE, REAL.flip(-1)),
            regard.ShapeError,
            "source_mask: needs True at the first positions of each entry, 1 or more,",
        ),
        (
            lambda: model().encode(SOURCE, REAL & (torch.arange(3) > 0)[:, None]),
            regard.ShapeError,
            "source_mask: needs True at the first positions of each entry, 1 or more,",
        ),
        (lambda: model().encode(SOURCE[..., :5]), regard.ShapeError, "source: got shape"),
        (lambda: model().encode(SOURCE[0]), regard.ShapeError, r"needs \(B, length, 8\)"),
        (
            lambda: model().encode(SOURCE[:, :0]),
            regard.ShapeError,
            r"source: got no position, shape \(3, 0, 8\); needs one or more",
        ),
        (
            lambda: model().decode(TARGET, MEMORY[:, :0]),
            regard.ShapeError,
            r"memory: got no position, shape \(3, 0, 16\); needs one or more",
        ),
        (
            lambda: model().decode(TARGET[:2], MEMORY),
            regard.ShapeError,
            r"memory: is of batch \(3,\); the target's is \(2,\)",
        ),
        (
            lambda: model().decode(TARGET, MEMORY, memory_mask=REAL & False),
            regard.ShapeError,
            "memory_mask: needs True at the first positions of each entry, 1 or more,",
        ),
        (
            lambda: model().decode(TARGET, MEMORY, memory_mask=REAL.flip(-1)),
            regard.ShapeError,
            "memory_mask: needs True at the first positions of each entry, 1 or more,",
        ),
        (
            lambda: model()(SOURCE, TARGET, REAL, REAL[:, :6].flip(-1)),
            regard.ShapeError,
            "target_mask: needs True at the first positions of each entry and False after them",
        ),
        (lambda: model().decode(TARGET, SOURCE), regard.ShapeError, "memory: got shape"),
        (
            lambda: model()(SOURCE, TARGET, REAL, REAL),
            regard.ShapeError,
            r"target_mask: got shape \(3, 7\); needs \(3, 6\)",
        ),
    ],
)
def test_what_does_not_fit(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
