"""How good translations are: BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacreBLEU."""

from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu


@dataclass(frozen=True)
class Scores:
    """Of a whole test set.

    Attributes:
        bleu, chrf: from 0 to 100.
        signatures: what sacreBLEU needs told to compute the same again.
    """

    bleu: float
    chrf: float
    signatures: tuple[str, str]


def score(translations: Sequence[str], references: Sequence[str]) -> Scores:
    """BLEU and chrF of translations against one reference each."""
    metrics = sacrebleu.BLEU(), sacrebleu.CHRF()
    bleu, chrf = (m.corpus_score(list(translations), [list(references)]).score for m in metrics)
    signatures = str(metrics[0].get_signature()), str(metrics[1].get_signature())
    return Scores(bleu, chrf, signatures)
