"""What both pages of a report say in the same words."""

from __future__ import annotations

from typing import Any

from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.registry import corpus_metrics

SAMPLE_TITLES = {"best": "Best answers", "worst": "Worst answers", "random": "Random answers"}


def shown_corpus_metrics(content: dict[str, Any]) -> list[Metric]:
    """The metrics of whole sets that some row of the table of scores has."""
    return [metric for metric in corpus_metrics() if any(metric.name in row["set_scores"] for row in content["scores"])]


def corpus_note(content: dict[str, Any]) -> str:
    """Which columns are scores of a whole set; "" for none."""
    titles = [metric.title for metric in shown_corpus_metrics(content)]
    if not titles:
        return ""
    return f"{' and '.join(titles)} {'is a score' if len(titles) == 1 else 'are scores'} of the whole set."


def dropped_text(dropped: dict[str, int]) -> str:
    """``12: 10 empty summary, 2 …``, or 0."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"{sum(dropped.values())}: {reasons}" if dropped else "0"
