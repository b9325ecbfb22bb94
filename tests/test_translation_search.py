"""Search: beam against all translations there are, and against the greedy choice."""

from itertools import product

import pytest
import torch
from torch import Tensor
from translation_toys import TINY, reversals

from regard import ModelError
from regard.translation.batches import collate
from regard.translation.model import TranslationModel
from regard.translation.search import kept_best, search
from regard.translation.vocabulary import BEGIN, END, PAD

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

PIECES = END + 4  # pad, unknown, begin, end and three letters
LONGEST = 4


class Toy:
    """A model of the next token that depends on the last two, from a table."""

    def __init__(self, seed: int, rows: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(PIECES, PIECES, PIECES, generator=generator).log_softmax(-1)
        self.before = torch.full((rows,), PAD)

    def step(self, tokens: Tensor) -> Tensor:
        found = self.table[self.before, tokens]
        self.before = tokens
        return found.clone()

    def reorder(self, indices: Tensor) -> None:
        self.before = self.before[indices]

    def score(self, tokens: tuple[int, ...], penalty: float) -> float:
        text = (PAD, BEGIN, *tokens)
        total = sum(
            self.table[text[i], text[i + 1], text[i + 2]].item() for i in range(len(tokens))
        )
        return total / len(tokens) ** penalty


def finished() -> list[tuple[int, ...]]:
    letters = range(END + 1, PIECES)
    return [(*t, END) for n in range(LONGEST) for t in product(letters, repeat=n)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_translations(seed: int, penalty: float) -> None:
    beam = len(finished())
    toy = Toy(seed, beam)
    (found,) = kept_best(toy.step, toy.reorder, 1, beam, [LONGEST], penalty)
    scores = {tokens: toy.score(tokens, penalty) for tokens in finished()}
    best = max(scores, key=scores.__getitem__)
    assert (*found.tokens, END) == best
    assert found.score == pytest.approx(scores[best], abs=1e-5)
    assert found.finished


def test_a_beam_of_one_takes_the_most_probable_token_until_the_end() -> None:
    toy = Toy(0, 1)
    (found,) = kept_best(toy.step, toy.reorder, 1, 1, [20], 1.0)
    text = [PAD, BEGIN]
    while text[-1] != END and len(text) < 22:
        row = toy.table[text[-2], text[-1]].clone()
        row[:END] = -torch.inf
        text.append(int(row.argmax()))
    assert found.tokens == [token for token in text[2:] if token != END]
    assert found.finished == (text[-1] == END)


def test_sentences_of_a_batch_do_not_touch_each_other() -> None:
    torch.manual_seed(1)
    model = TranslationModel(TINY).eval()
    letters = range(TINY.pieces - 8, TINY.pieces)
    sources = [[letters[0]], [letters[2]] * 9, [letters[1], letters[3]]]
    batch = collate([(source, []) for source in sources]).source
    together = search(model, batch, beam=3)
    for source, found in zip(sources, together, strict=True):
        (alone,) = search(model, collate([(source, [])]).source, beam=3)
        assert alone.tokens == found.tokens
        assert alone.score == pytest.approx(found.score, abs=1e-4)


def test_a_score_is_that_of_reading_the_translation_at_once() -> None:
    torch.manual_seed(2)
    model = TranslationModel(TINY).eval()
    (found,) = search(model, collate([([270 - 3, 270 - 5], [])]).source, beam=4)
    batch = collate([([270 - 3, 270 - 5], found.tokens)])
    with torch.inference_mode():
        log = model.logits(model(batch.source, batch.target[:, :-1])).log_softmax(-1)
    wanted = batch.target[0, 1:] if found.finished else batch.target[0, 1:-1]
    chosen = log[0, torch.arange(len(wanted)), wanted]
    assert found.score == pytest.approx(float(chosen.mean()), abs=1e-5)


def test_what_does_not_end_is_said_to_be_unfinished() -> None:
    def step(tokens: Tensor) -> Tensor:
        log = torch.full((len(tokens), PIECES), -5.0)
        log[:, END + 1] = -0.01
        log[:, END] = -torch.inf
        return log

    (found,) = kept_best(step, lambda _: None, 1, 2, [6], 1.0)
    assert not found.finished
    assert found.tokens == [END + 1] * 6


def test_a_model_with_a_weight_that_is_nan_is_refused() -> None:
    model = TranslationModel(TINY).eval()
    with torch.no_grad():
        model.table.weight[7, 0] = torch.nan
    with pytest.raises(ModelError, match=r"gives probabilities that are NaN"):
        search(model, collate([([270 - 3], [])]).source, beam=2)


def test_toys_are_what_they_say() -> None:
    assert all(target == source[::-1] for source, target in reversals(20, 0))
