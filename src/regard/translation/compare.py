"""Three kinds of translators on the same text: what attention does for long sentences.

Cho et al. (2014) saw that a recurrent encoder-decoder with one fixed summary translates the worse
the longer a sentence is; Bahdanau et al. (2014) that attention mends it. Here both, and a
Transformer, are trained on the same pairs and measured by length of the source.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from regard._watch.files import replacing
from regard.translation import checks
from regard.translation.corpus import Pair
from regard.translation.figure import drawn
from regard.translation.model import Config, TranslationModel
from regard.translation.parts import parted
from regard.translation.scores import Score, score
from regard.translation.show import told, write_page
from regard.translation.start import begin
from regard.translation.train import Settings, Training
from regard.translation.translator import Translator

KINDS = {
    "fixed": "recurrent, one fixed summary",
    "additive": "recurrent, additive attention",
    "transformer": "Transformer",
}
BUCKETS = ((1, 10), (11, 20), (21, 30), (31, 40), (41, 50), (51, 60))  # words of the source
SHOWN = 10  # sentences whose alignments are kept
TIMED = 15  # training steps of each kind


@dataclass(frozen=True)
class Line:
    """One kind of translator on the test sentences of one length.

    Attributes:
        kind: of KINDS.
        words: of the shortest and longest source, or None for all of the test set.
        pairs: how many.
        bleu, chrf: with intervals.
        unfinished: translations that ran into their limit.
    """

    kind: str
    words: tuple[int, int] | None
    pairs: int
    bleu: Score
    chrf: Score
    unfinished: int


@dataclass(frozen=True)
class Trained:
    """What was trained, of one kind.

    Attributes:
        config: of the model.
        weights: how many.
        steps: that were made.
        seconds: that they took, validations left out.
        speed: target tokens per second of a training step, all kinds in turn on the same batches.
    """

    config: Config
    weights: int
    steps: int
    seconds: float
    speed: float

    @classmethod
    def of(cls, training: Training, speed: float) -> "Trained":
        weights = sum(x.numel() for x in training.model.parameters())
        last = training.last
        return cls(training.config, weights, last.step, last.seconds, speed)


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
    trainings: dict[str, Training] = {}
    lines: list[Line] = []
    for kind, config in equal_sizes(vocabulary, size).items():
        with shown(settings.steps) as report:
            start = begin(folder / kind, train, config, resume=True)
            training = Training(folder / kind, train, validation, start, settings, report)
            report.told(training)
            for number, (source, _) in enumerate(test, 1):  # before hours of training, not after
                parted(
                    source,
                    start.vocabulary,
                    config.length - 1,
                    f"{number} of the test set",
                    whole=True,
                )
            training.run()
        trainings[kind] = training
        lines += _measured(Translator.load(folder / kind), kind, test, beam, folder)
    speeds = _speeds(trainings)
    trained = {kind: Trained.of(training, speeds[kind]) for kind, training in trainings.items()}
    table = f"{tabled(lines, trained)}\n{verdict(lines)}\n"
    counted = json.dumps(numbers(lines, trained, settings), indent=2)
    _write(folder / "comparison.json", counted.encode())
    _write(folder / "comparison.md", table.encode())
    _write(folder / "comparison.svg", drawn([(KINDS[k], _points(lines, k)) for k in KINDS]))
    return table


def equal_sizes(vocabulary: int, size: int) -> dict[str, Config]:
    """A configuration of each kind, with as many weights as the Transformer's within 1%."""
    checks.whole("size", size, 1)
    heads = next(n for n in range(max(1, size // 64), 0, -1) if size % n == 0)
    wanted = Config("transformer", vocabulary, size, heads=heads, inner=3 * size)
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


def _measured(
    translator: Translator, kind: str, test: Sequence[Pair], beam: int, folder: Path
) -> list[Line]:
    """Of the whole test set, and of each bucket that has sentences; writes alignments."""
    sources = [source for source, _ in test]
    found = translator.translate(sources, beam=beam, whole=True)  # lengths are what is measured
    lines = []
    for words in (None, *BUCKETS):
        chosen = [i for i, source in enumerate(sources) if words is None or _within(source, words)]
        if not chosen:
            continue
        texts, references = [found[i].target for i in chosen], [test[i][1] for i in chosen]
        bleu, chrf = score(texts, references, resample=True)
        unfinished = sum(not found[i].finished for i in chosen)
        lines.append(Line(kind, words, len(chosen), bleu, chrf, unfinished))
    if translator.layer is not None:
        aligned = translator.translate(sources[:SHOWN], beam=beam, align=True, whole=True)
        layers = translator.config.decoder_layers
        write_page(aligned, folder / f"alignments-{kind}.html", told(translator.layer, layers))
    return lines


def _within(source: str, words: tuple[int, int]) -> bool:
    return words[0] <= len(source.split()) <= words[1]


def _speeds(trainings: dict[str, Training]) -> dict[str, float]:
    """Target tokens per second; in turn, since the machine may be busier at one time than another.

    The models learn on meanwhile, but are written already.
    """
    speeds: dict[str, list[float]] = {kind: [] for kind in trainings}
    batches = next(iter(trainings.values())).epochs.after(0, 0)
    for _, _, batch in islice(batches, TIMED):
        for kind, training in trainings.items():
            began = time.perf_counter()
            training.learn(batch)
            speeds[kind].append(batch.predicted / (time.perf_counter() - began))
    return {kind: median(found) for kind, found in speeds.items()}


def numbers(
    lines: Sequence[Line], trained: dict[str, Trained], settings: Settings
) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "settings": asdict(settings),
        "trained": {kind: asdict(of) for kind, of in trained.items()},
        "lines": [asdict(line) for line in lines],
        "verdict": verdict(lines),
    }


def tabled(lines: Sequence[Line], trained: dict[str, Trained]) -> str:
    """Rows by length, a column per kind: BLEU and chrF, each with half its 95% interval."""
    rows = [["words", "pairs", *KINDS.values()], ["---:", "---:", *["---"] * len(KINDS)]]
    for words in (None, *BUCKETS):
        here = {line.kind: line for line in lines if line.words == words}
        if here:
            name = "all" if words is None else _named(words)
            cells = [f"{here[k].bleu} BLEU, {here[k].chrf} chrF" for k in KINDS]
            rows.append([name, f"{here['fixed'].pairs:,}", *cells])
    of = [trained[kind] for kind in KINDS]
    rows.append(["weights", "", *(f"{t.weights:,}" for t in of)])
    rows.append(["trained", "", *(f"{t.steps:,} steps, {t.seconds / 60:.0f} min" for t in of)])
    rows.append(["a step", "", *(f"{t.speed:,.0f} target tokens/s" for t in of)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def verdict(lines: Sequence[Line]) -> str:
    """Whether the fixed summary falls with length where the others hold, in one paragraph.

    Compared are the shortest and the longest bucket with sentences. A kind falls where BLEU is
    lower in the longest by more than the two intervals explain.
    """
    lengths = {line.words for line in lines if line.words is not None}
    if len(lengths) < 2:
        return "Lengths were not compared: the test set has not two of those above."
    changes, falls = [], {}
    for kind, name in KINDS.items():
        of = [line for line in lines if line.kind == kind and line.words is not None]
        first, last = of[0].bleu, of[-1].bleu
        change = last.value - first.value
        around = math.hypot(first.around or 0.0, last.around or 0.0)
        falls[kind] = change < -around
        changes.append(f"{name}: {change:+.1f} ± {around:.1f}")
    low, high = of[0].words, of[-1].words
    assert low is not None
    assert high is not None
    shown = falls.pop("fixed") and not any(falls.values())
    what = "falls with length where the others hold" if shown else "was not shown to fall alone"
    return (
        f"From {_named(low)} words to {_named(high)} BLEU changes by: {'; '.join(changes)}. "
        f"The fixed summary {what}."
    )


def _named(words: tuple[int, int]) -> str:
    return f"{words[0]} to {words[1]}"


def _points(lines: Sequence[Line], kind: str) -> list[tuple[float, float, float]]:
    """Middle of the bucket, BLEU, half its interval."""
    return [
        (sum(line.words) / 2, line.bleu.value, line.bleu.around or 0.0)
        for line in lines
        if line.kind == kind and line.words is not None
    ]


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as stream:
        stream.write(content)
