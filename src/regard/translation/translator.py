"""A trained model that translates: `Translator.load("en-fr").translate(["Hello."])`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regard._errors import ModelError, OptionError, TextError
from regard.translation import alignment, checkpoint, checks, unknown
from regard.translation.alignment import cross_attentions, labels
from regard.translation.batches import Tokens, groups, pad
from regard.translation.checkpoint import Saved
from regard.translation.parts import Part, parted
from regard.translation.search import Found, search
from regard.translation.vocabulary import END

PACKAGED = {"en-fr": "regard_en_fr"}  # models/en-fr
FILE = "model.safetensors"
TOKENS = 4096  # of a batch, beams included


@dataclass(frozen=True, eq=False)
class Translation:
    """One text and its translation.

    Attributes:
        source: the text.
        target: its translation.
        tokens: of both as the model reads and writes them, "▁" at the beginning of a word, each
            with its end, "</s>".
        weights: (target tokens, source tokens) float32, or None unless asked for: how much each
            target token looked at each source token when it was written. The mean over the heads
            of one cross-attention; every row sums to one.
        score: the mean of the logarithms of the target tokens' probabilities, in nats.
        finished: whether the model ended the translation; otherwise it ran into its limit.

    A text of several sentences has the tokens of all, and weights of zero between them: each was
    translated for itself, unless asked otherwise.
    Words with characters that the vocabulary lacks are one token on both sides. The model read a
    digit for them; where it did not write that, the token stands behind the word that looked at it
    most, with that word's weights.
    """

    source: str
    target: str
    tokens: tuple[list[str], list[str]]
    weights: np.ndarray | None
    score: float
    finished: bool


class _Written(NamedTuple):
    """A part's translation: its text, the tokens and weights of both sides, and as it was found."""

    target: str
    tokens: tuple[list[str], list[str]]
    weights: np.ndarray | None
    found: Found


class Translator:
    """A model with its vocabulary.

    Args:
        saved: what a model's file holds.
    """

    def __init__(self, saved: Saved) -> None:
        self.vocabulary, self.config = saved.vocabulary, saved.config
        self.model = saved.model()
        layers = len(cross_attentions(self.model))
        self.layer = min(saved.alignment, layers - 1) if layers else None

    @classmethod
    def load(cls, name: str | os.PathLike[str] = "en-fr") -> "Translator":
        """A packaged model by its name, or one that `regard translate train` wrote.

        Args:
            name: "en-fr", a file, or a folder with a `model.safetensors`.

        Raises:
            ModelError: it is not there, or its package is not installed.
            FileError: the file is none of a translation model.
        """
        return cls(checkpoint.read(model_path(name)))

    def translate(
        self, texts: Sequence[str], *, beam: int = 4, align: bool = False, whole: bool = False
    ) -> list[Translation]:
        """Translations of texts, in their order. A text without words is its own.

        Words with characters that the vocabulary lacks are left as they are.

        Args:
            texts: a sentence or paragraph each. A sentence that is longer than the model takes is
                translated in parts, between clauses or words. Spaces beside each other count as
                one, and "▁" as a space.
            beam: translations kept at every step of the search; 1 is greedy.
            align: whether to give the weights too.
            whole: translate sentences of a text together, as many as the model takes, rather than
                one at a time: a small model loses some of several.

        Raises:
            TextError: a word is longer than the model takes, or a text is none.
            OptionError: a beam that is not positive, or weights of a model without attention.
            ModelError: what the model computes is not a number.
        """
        if isinstance(texts, str):
            raise TextError("texts: got one text; needs a list of them")
        checks.whole("beam", beam, 1)
        if align and self.layer is None:
            raise OptionError("align: this model has no attention; needs one that has")
        most = self.config.length - 1
        read = [
            parted(text, self.vocabulary, most, n, whole=whole) for n, text in enumerate(texts, 1)
        ]
        done = iter(self._translated([part for parts in read for part in parts], beam, align))
        return [
            self._joined(text, [next(done) for _ in parts], align)
            for text, parts in zip(texts, read, strict=True)
        ]

    def _translated(self, parts: Sequence[Part], beam: int, align: bool) -> list[_Written]:
        found = self._search([part.tokens for part in parts], beam)
        names = [self.vocabulary.pieces(one.tokens) for one in found]
        sources = [self.vocabulary.pieces(part.tokens) for part in parts]
        lost = [
            unknown.missing(source, target, part.runs)
            for source, target, part in zip(sources, names, parts, strict=True)
        ]
        looked = [i for i in range(len(parts)) if self.layer is not None and (align or lost[i])]
        seen = self._weights([(parts[i].tokens, found[i].tokens) for i in looked])
        weights = dict(zip(looked, seen, strict=True))
        return [
            self._written(part, one, weights.get(i), lost[i], unknown.again(names[i], part.runs))
            for i, (part, one) in enumerate(zip(parts, found, strict=True))
        ]

    def _written(
        self,
        part: Part,
        found: Found,
        weights: np.ndarray | None,
        lost: Sequence[int],
        spare: Sequence[int],
    ) -> _Written:
        """What was found for a part, with what the model did not know.

        Args:
            lost: source tokens that stand for what is not in the translation.
            spare: places in the translation of what is there already.
        """
        tokens = [token for i, token in enumerate(found.tokens) if i not in spare]
        rows = [i for i in range(len(found.tokens) + 1) if i not in spare]
        for column in lost:
            seen = None if weights is None else weights[rows]
            place = unknown.behind(self.vocabulary.pieces(tokens), seen, column)
            tokens.insert(place, part.tokens[column])
            rows.insert(place, rows[max(0, place - 1)])
        source, target = labels((part.tokens, tokens), self.vocabulary)
        return _Written(
            target=unknown.restored(self.vocabulary.decode(tokens), part.runs),
            tokens=(unknown.shown(source, part.runs), unknown.shown(target, part.runs)),
            weights=None if weights is None else weights[rows],
            found=found,
        )

    def _search(self, sources: Sequence[list[int]], beam: int) -> list[Found]:
        lengths = [(len(source) + 1, len(source) + 1) for source in sources]
        found: dict[int, Found] = {}
        for places in groups(lengths, max(1, TOKENS // beam), range(len(sources))):
            batch = pad([[*sources[i], END] for i in places])
            found |= dict(zip(places, search(self.model, batch, beam=beam), strict=True))
        return [found[i] for i in range(len(sources))]

    def _weights(self, pairs: Sequence[Tokens]) -> list[np.ndarray]:
        lengths = [(len(source) + 1, len(target) + 1) for source, target in pairs]
        seen: dict[int, np.ndarray] = {}
        for places in groups(lengths, TOKENS, range(len(pairs))):
            assert self.layer is not None
            weights = alignment.align(self.model, [pairs[i] for i in places], self.layer)
            seen |= dict(zip(places, weights, strict=True))
        return [seen[i] for i in range(len(pairs))]

    def _joined(self, text: str, parts: Sequence[_Written], align: bool) -> Translation:
        if not parts:
            weights = np.zeros((0, 0), np.float32) if align else None
            return Translation(text, text, ([], []), weights, 0.0, True)
        tokens = tuple([piece for part in parts for piece in part.tokens[side]] for side in (0, 1))
        blocks = [part.weights for part in parts if part.weights is not None]
        counts = [len(part.found.tokens) + part.found.finished for part in parts]
        total = sum(part.found.score * n for part, n in zip(parts, counts, strict=True))
        return Translation(
            source=text,
            target=" ".join(part.target for part in parts),
            tokens=(tokens[0], tokens[1]),
            weights=_diagonal(blocks) if align else None,
            score=total / sum(counts),
            finished=all(part.found.finished for part in parts),
        )


def _diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """One matrix with the blocks along its diagonal."""
    rows, columns = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    whole = np.zeros((rows, columns), np.float32)
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole


def model_path(name: str | os.PathLike[str]) -> Path:
    """The file of a model by the name that `Translator.load` takes.

    Raises:
        ModelError: there is none.
    """
    where = os.fspath(name)
    if where in PACKAGED:
        return _packaged(where)
    path = Path(where).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(f'"{known}"' for known in PACKAGED)
        raise ModelError(f'model: there is no "{path}"; needs {known}, a file or a folder')
    return path


def _packaged(name: str) -> Path:
    found = find_spec(PACKAGED[name])
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            f'model: "{name}" comes as the package {PACKAGED[name]}, which is not installed: '
            f"pip install ./models/{name} in regard's source"
        )
    return Path(next(iter(found.submodule_search_locations))) / FILE
