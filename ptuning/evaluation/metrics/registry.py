"""Every metric there is. A new one is a file beside this one and a line in :data:`METRICS`; files, tables, reports and
``--metric_for_best_model`` take it from here."""

from __future__ import annotations

from ptuning.evaluation.metrics.bleu import BLEU_4
from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.rouge import ROUGE_1, ROUGE_2, ROUGE_L
from ptuning.evaluation.metrics.sacrebleu_scores import CHRF, SACREBLEU_ZH

METRICS: tuple[Metric, ...] = (
    ROUGE_1,
    ROUGE_2,
    ROUGE_L,
    BLEU_4,
    CHRF,
    SACREBLEU_ZH,
)
"""In the order in which files have them."""


def row_metrics() -> list[Metric]:
    """Those that score a row, in the order of files."""
    return [metric for metric in METRICS if metric.row is not None]


def corpus_metrics() -> list[Metric]:
    """Those that score a whole set at once."""
    return [metric for metric in METRICS if metric.corpus is not None]


def table_metrics() -> list[Metric]:
    """Those that score a row, in the order of tables."""
    return sorted(row_metrics(), key=lambda metric: not metric.first)


def headline_metrics() -> list[Metric]:
    """Those that a report shows first, in the order of tables."""
    return [metric for metric in table_metrics() if metric.headline]
