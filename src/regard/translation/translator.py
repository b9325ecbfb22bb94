"""A trained model that translates: `Translator.load("en-fr").translate(["Hello."])`."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from regard._errors import ModelError, OptionError, TextError
from regard.translation import alignment, checkpoint
from regard.translation.alignment import cross_attentions, labels
from regard.translation.batches import groups, pad
from regard.translation.checkpoint import Saved
from regard.translation.search import Found, search
from regard.translation.vocabulary import END

PACKAGED = {"en-fr": "regard_en_fr"}  # models/en-fr
FILE = "model.safetensors"
TOKENS = 4096  # of a batch, beams included
SENTENCE = re.compile(r"(?<=[.!?:;…])\s+")  # where a text that is too long may be parted


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

    A text that was translated in parts has the tokens of all, and weights of zero between parts.
    """

    source: str
    target: str
    tokens: tuple[list[str], list[str]]
    weights: np.ndarray | None
    score: float
    finished: bool


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
        self, texts: Sequence[str], *, beam: int = 4, align: bool = False
    ) -> list[Translation]:
        """Translations of texts, in their order. A text without words is its own.

        Args:
            texts: a sentence or paragraph each. One with more tokens than the model takes is
                translated in parts, between sentences.
            beam: translations kept at every step of the search; 1 is greedy.
            align: whether to give the weights too.

        Raises:
            TextError: a sentence is longer than the model takes.
            OptionError: a beam that is not positive, or weights of a model without attention.
        """
        if isinstance(texts, str):
            raise TextError("texts: got one text; needs a list of them")
        if beam < 1:
            raise OptionError(f"beam: got {beam}; needs at least 1")
        if align and self.layer is None:
            raise OptionError("align: this model has no attention; needs one that has")
        parts = [self._parts(text, number) for number, text in enumerate(texts, 1)]
        flat = [part for of_text in parts for part in of_text]
        found = self._search(flat, beam)
        weights = self._weights(flat, found) if align else [None] * len(flat)
        done = iter(zip(flat, found, weights, strict=True))
        return [
            self._joined(text, [next(done) for _ in of_text], align)
            for text, of_text in zip(texts, parts, strict=True)
        ]

    def _parts(self, text: str, number: int) -> list[list[int]]:
        """A text in tokens, as few parts as the model's length allows."""
        if not text.strip():
            return []
        whole = self.vocabulary.encode(text)
        most = self.config.length - 1
        if len(whole) <= most:
            return [whole]
        parts: list[list[int]] = []
        for sentence in map(self.vocabulary.encode, SENTENCE.split(text.strip())):
            if len(sentence) > most:
                raise TextError(
                    f"text {number}: has a sentence of {len(sentence)} tokens; the model takes "
                    f"{most}"
                )
            if parts and len(parts[-1]) + len(sentence) <= most:
                parts[-1] += sentence
            else:
                parts.append(sentence)
        return parts

    def _search(self, sources: Sequence[list[int]], beam: int) -> list[Found]:
        lengths = [(len(source) + 1, len(source) + 1) for source in sources]
        found: dict[int, Found] = {}
        for places in groups(lengths, max(1, TOKENS // beam), range(len(sources))):
            batch = pad([[*sources[i], END] for i in places])
            found |= dict(zip(places, search(self.model, batch, beam=beam), strict=True))
        return [found[i] for i in range(len(sources))]

    def _weights(self, sources: Sequence[list[int]], found: Sequence[Found]) -> list[np.ndarray]:
        pairs = [(s, f.tokens) for s, f in zip(sources, found, strict=True)]
        lengths = [(len(source) + 1, len(target) + 1) for source, target in pairs]
        seen: dict[int, np.ndarray] = {}
        for places in groups(lengths, TOKENS, range(len(pairs))):
            assert self.layer is not None
            weights = alignment.align(self.model, [pairs[i] for i in places], self.layer)
            seen |= dict(zip(places, weights, strict=True))
        return [seen[i] for i in range(len(pairs))]

    def _joined(
        self, text: str, parts: Sequence[tuple[list[int], Found, np.ndarray | None]], align: bool
    ) -> Translation:
        if not parts:
            weights = np.zeros((0, 0), np.float32) if align else None
            return Translation(text, text, ([], []), weights, 0.0, True)
        named = [labels((source, found.tokens), self.vocabulary) for source, found, _ in parts]
        tokens = tuple([piece for part in named for piece in part[side]] for side in (0, 1))
        targets = [self.vocabulary.decode(found.tokens) for _, found, _ in parts]
        counts = [len(found.tokens) + found.finished for _, found, _ in parts]
        total = sum(f.score * n for (_, f, _), n in zip(parts, counts, strict=True))
        return Translation(
            source=text,
            target=" ".join(targets),
            tokens=(tokens[0], tokens[1]),
            weights=_diagonal([w for _, _, w in parts if w is not None]) if align else None,
            score=total / sum(counts),
            finished=all(found.finished for _, found, _ in parts),
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
