"""How good translations are: BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacreBLEU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sacrebleu

RESAMPLED = 1000


class _Floats:
    """Scores of a metric as Python's floats, those of resampled test sets too.

    sacreBLEU gives NumPy's float32 for some of them and 0.0 for others, which `statistics`, that it
    takes their mean with, refuses.
    """

    def _compute_score_from_stats(self, stats: Any) -> Any:
        found = super()._compute_score_from_stats(stats)  # type: ignore[misc]
        found.score = float(found.score)
        return found


class _Bleu(_Floats, sacrebleu.BLEU): ...


class _Chrf(_Floats, sacrebleu.CHRF): ...


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
    for metric in (_Bleu(), _Chrf()):
        given = list(translations), [list(references)]
        result = metric.corpus_score(*given, n_bootstrap=RESAMPLED if resample else 1)
        around = float(result._ci) if resample else None
        found.append(Score(float(result.score), around, str(metric.get_signature())))
    return found[0], found[1]
