"""How good translations are: BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacreBLEU."""

from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu

RESAMPLED = 1000


@dataclass(frozen=True)
class Score:
    """Of a whole test set.

    Attributes:
        value: from 0 to 100.
        around: half the width of the interval in which 95% of the scores of resampled test sets
            are (Koehn 2004); None unless asked for.
        signature: what sacreBLEU needs told to compute the same again.
    """

    value: float
    around: float | None
    signature: str

    def __str__(self) -> str:
        return f"{self.value:.1f}" + ("" if self.around is None else f" ± {self.around:.1f}")


def score(
    translations: Sequence[str], references: Sequence[str], *, resample: bool = False
) -> tuple[Score, Score]:
    """BLEU and chrF of translations against one reference each."""
    found = []
    for metric in (sacrebleu.BLEU(), sacrebleu.CHRF()):
        given = list(translations), [list(references)]
        result = metric.corpus_score(*given, n_bootstrap=RESAMPLED if resample else 1)
        around = float(result._ci) if resample else None
        found.append(Score(float(result.score), around, str(metric.get_signature())))
    return found[0], found[1]
