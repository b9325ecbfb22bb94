"""A translator on a test set: BLEU and chrF with intervals from resampling, and speed."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regard.translation.corpus import Pair
from regard.translation.scores import Score, score
from regard.translation.translator import Translator


@dataclass(frozen=True)
class Measured:
    """What a translator does on a test set.

    Attributes:
        pairs: in it.
        beam: of the search.
        bleu, chrf: with intervals.
        seconds: that translating took.
        tokens: that were written.
        unfinished: translations that ran into their limit.
    """

    pairs: int
    beam: int
    bleu: Score
    chrf: Score
    seconds: float
    tokens: int
    unfinished: int

    def numbers(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """As the terminal shows it."""
        lines = [
            f"BLEU {self.bleu}  {self.bleu.signature}",
            f"chrF {self.chrf}  {self.chrf.signature}",
            f"{self.pairs:,} pairs, beam {self.beam}, {self.tokens / self.seconds:,.0f} tokens/s",
        ]
        if self.unfinished:
            lines.append(f"{self.unfinished} translations ran into their limit")
        return "\n".join(lines)


def measure(translator: Translator, pairs: Sequence[Pair], beam: int) -> Measured:
    """Translate the sources, and compare with the targets."""
    sources, references = [s for s, _ in pairs], [t for _, t in pairs]
    began = time.perf_counter()
    found = translator.translate(sources, beam=beam)
    seconds = time.perf_counter() - began
    texts = [translation.target for translation in found]
    bleu, chrf = score(texts, references, resample=True)
    return Measured(
        pairs=len(pairs),
        beam=beam,
        bleu=bleu,
        chrf=chrf,
        seconds=seconds,
        tokens=sum(len(translation.tokens[1]) for translation in found),
        unfinished=sum(not translation.finished for translation in found),
    )
