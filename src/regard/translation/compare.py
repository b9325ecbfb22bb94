"""Three kinds of translators on the same text: what attention does for long sentences.

Cho et al. (2014) saw that a recurrent encoder-decoder with one fixed summary translates the worse
the longer a sentence is; Bahdanau et al. (2014) that attention mends it. Here both, and a
Transformer, are trained on the same pairs and measured by length of the source.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from regard._watch.files import replacing
from regard.translation import checkpoint
from regard.translation.corpus import Pair
from regard.translation.figure import drawn
from regard.translation.measure import Measured, measure
from regard.translation.model import Config, TranslationModel
from regard.translation.show import told, write_page
from regard.translation.start import begin
from regard.translation.train import MODEL, Settings, Training
from regard.translation.translator import Translator

KINDS = {
    "fixed": "recurrent, one fixed summary",
    "additive": "recurrent, additive attention",
    "transformer": "Transformer",
}
BUCKETS = ((1, 10), (11, 20), (21, 30), (31, 40), (41, 50), (51, 60))  # words of the source
SHOWN = 10  # sentences whose alignments are kept


@dataclass(frozen=True)
class Line:
    """One kind of translator on the test sentences of one length.

    Attributes:
        kind: of KINDS.
        words: of the shortest and longest source, or None for all of the test set.
        measured: what it does.
    """

    kind: str
    words: tuple[int, int] | None
    measured: Measured


def compare(
    folder: Path,
    sets: tuple[Sequence[Pair], Sequence[Pair], Sequence[Pair]],
    settings: Settings,
    *,
    vocabulary: int,
    size: int,
    beam: int,
    shown: Callable[[int], AbstractContextManager[Any]],
) -> str:
    """Train what is not there yet, measure, and write the results.

    Args:
        folder: for a folder of each model, and comparison.json, .md and .svg.
        sets: training, validation and test.
        settings: of each training.
        vocabulary: pieces, which are learnt from the training set.
        size: of the vectors. The Transformer has 3 + 2 layers of it; the recurrent models have
            one layer each, and states that give them as many weights.
        shown: makes what shows the progress of a training of so many steps.

    Returns:
        The table, as in comparison.md.
    """
    train, validation, test = sets
    configs = equal_sizes(vocabulary, size)
    lines: list[Line] = []
    weights: dict[str, int] = {}
    for kind, config in configs.items():
        own = folder / kind
        if not (own / MODEL).is_file() or checkpoint.checkpoints(own):
            with shown(settings.steps) as report:
                start = begin(own, train, config, resume=True)
                training = Training(own, train, validation, start, settings, report)
                report.told(training)
                training.run()
        translator = Translator.load(own)
        weights[kind] = sum(x.numel() for x in translator.model.parameters())
        lines += _lines(translator, kind, test, beam)
        if translator.layer is not None:
            _write_alignments(translator, kind, test, beam, folder)
    table = tabled(lines, weights)
    _write(folder / "comparison.json", json.dumps(numbers(lines, weights, settings), indent=2))
    _write(folder / "comparison.md", table)
    _write(folder / "comparison.svg", drawn([(KINDS[k], _points(lines, k)) for k in KINDS]))
    return table


def equal_sizes(vocabulary: int, size: int) -> dict[str, Config]:
    """A configuration of each kind, with as many weights as the Transformer's within 1%."""
    wanted = Config("transformer", vocabulary, size, heads=max(1, size // 64), inner=3 * size)
    weights = _count(wanted)
    configs = {"transformer": wanted}
    for kind in ("fixed", "additive"):
        config = Config(kind, vocabulary, size, encoder_layers=1, decoder_layers=1)
        low, high = 1, 16 * size
        while high - low > 1:  # weights grow with the states
            middle = (low + high) // 2
            fewer = _count(replace(config, inner=middle)) <= weights
            low, high = (middle, high) if fewer else (low, middle)
        configs[kind] = replace(config, inner=low)
    return {kind: configs[kind] for kind in KINDS}


def _count(config: Config) -> int:
    import torch

    with torch.device("meta"):
        return sum(x.numel() for x in TranslationModel(config).parameters())


def _lines(translator: Translator, kind: str, test: Sequence[Pair], beam: int) -> list[Line]:
    """Of the whole test set, and of each bucket that has sentences."""
    lines = [Line(kind, None, measure(translator, test, beam))]
    for low, high in BUCKETS:
        pairs = [pair for pair in test if low <= len(pair[0].split()) <= high]
        if pairs:
            lines.append(Line(kind, (low, high), measure(translator, pairs, beam)))
    return lines


def _write_alignments(
    translator: Translator, kind: str, test: Sequence[Pair], beam: int, folder: Path
) -> None:
    sources = [source for source, _ in test[:SHOWN]]
    found = translator.translate(sources, beam=beam, align=True)
    layers = translator.config.decoder_layers
    write_page(found, folder / f"alignments-{kind}.html", told(translator.layer or 0, layers))


def numbers(lines: Sequence[Line], weights: dict[str, int], settings: Settings) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "settings": asdict(settings),
        "weights": weights,
        "lines": [asdict(line) for line in lines],
    }


def tabled(lines: Sequence[Line], weights: dict[str, int]) -> str:
    """Rows by length, a column per kind: BLEU and chrF, each with half its 95% interval."""
    kinds = [kind for kind in KINDS if kind in weights]
    heads = [f"{KINDS[kind]}, {weights[kind] / 1e6:.1f} M" for kind in kinds]
    rows = [["words", "pairs", *heads], ["---:", "---:", *["---"] * len(kinds)]]
    for words in (None, *BUCKETS):
        here = {line.kind: line.measured for line in lines if line.words == words}
        if here:
            name = "all" if words is None else f"{words[0]} to {words[1]}"
            cells = [f"{here[k].bleu} BLEU, {here[k].chrf} chrF" for k in kinds]
            rows.append([name, f"{here[kinds[0]].pairs:,}", *cells])
    whole = {line.kind: line.measured for line in lines if line.words is None}
    speeds = [f"{whole[k].tokens / whole[k].seconds:,.0f} tokens/s" for k in kinds]
    rows.append(["", "", *speeds])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _points(lines: Sequence[Line], kind: str) -> list[tuple[float, float, float]]:
    """Middle of the bucket, BLEU, half its interval."""
    return [
        (sum(line.words) / 2, line.measured.bleu.value, line.measured.bleu.around or 0.0)
        for line in lines
        if line.kind == kind and line.words is not None
    ]


def _write(path: Path, text: str) -> None:
    with replacing(path) as stream:
        stream.write(text.encode())
