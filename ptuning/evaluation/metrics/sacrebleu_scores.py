"""chrF and BLEU with Chinese tokenisation as sacrebleu computes them, over a whole set, 0 to 100: beside the published
scores, where the library is installed (``pip install ptuning[metrics]``). Neither is a mean of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptuning.evaluation.metrics.metric import Metric


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """chrF of a set; None without sacrebleu."""
    try:
        from sacrebleu.metrics import CHRF as Score  # noqa: N811  # not our own of that name
    except ImportError:
        return None
    return _score_of(Score(), predictions, references)


def sacrebleu_zh(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """BLEU of a set with sacrebleu's Chinese tokenisation; None without sacrebleu."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return None
    # force: no advice on standard error about texts that look tokenised
    return _score_of(BLEU(tokenize="zh", force=True), predictions, references)


def _score_of(score: Any, predictions: Sequence[str], references: Sequence[str]) -> float:
    return float(score.corpus_score(list(predictions), [list(references)]).score)


CHRF = Metric("chrf", "chrF", corpus=chrf)
SACREBLEU_ZH = Metric("sacrebleu-zh", "BLEU (zh)", corpus=sacrebleu_zh)
