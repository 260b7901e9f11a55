"""Scores of a pair and of a set, by the metrics of the registry; all are rounded to 4 digits, those of rows before the mean
is taken."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

from ptuning.core.characters import is_blank
from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.registry import corpus_metrics, row_metrics

_DIGITS = 4


def score_pair(prediction: str, reference: str) -> dict[str, float]:
    """Scores of one reply against its reference, by the names of the metrics.

    Always finite: where one of the two has nothing but blanks, every score is the metric's worst (0 for the published
    ones).
    """
    blank = is_blank(prediction) or is_blank(reference)
    return {metric.name: _row_score(metric, prediction, reference, blank) for metric in row_metrics()}


def _row_score(metric: Metric, prediction: str, reference: str, blank: bool) -> float:
    if blank or metric.row is None:
        return metric.blank
    return round(metric.row(prediction, reference), _DIGITS)


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean scores over all pairs, the counts of :func:`summary`, and the scores of the whole set.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references; give as many of both, at least one"
        )
    pairs = [score_pair(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]
    return summary(pairs, predictions, references)


def summary(
    pairs: Sequence[Mapping[str, float]], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """From the scores of pairs to those of a set.

    Args:
        pairs: what :func:`score_pair` gave for each pair; at least one.
        predictions: as many texts; ``references`` likewise.

    Returns:
        the means; ``empty_predictions`` and ``empty_references`` (blank; such a pair has the worst scores) and
        ``punctuation_predictions`` (no letter, digit or symbol in them) as counts; the scores of the whole set whose
        library is installed.
    """
    means: dict[str, float] = {
        metric.name: math.fsum(pair[metric.name] for pair in pairs) / len(pairs) for metric in row_metrics()
    }
    means["empty_predictions"] = sum(map(is_blank, predictions))
    means["empty_references"] = sum(map(is_blank, references))
    means["punctuation_predictions"] = sum(is_punctuation(prediction) for prediction in predictions)
    return means | corpus_scores(predictions, references)


def corpus_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores of a whole set by name; without those whose library is not installed. None of them is a mean of rows."""
    scores = {metric.name: metric.corpus(predictions, references) for metric in corpus_metrics() if metric.corpus}
    return {name: round(value, _DIGITS) for name, value in scores.items() if value is not None}


def is_punctuation(text: str) -> bool:
    """Whether a text has something in it besides blanks, and that is punctuation only."""
    kinds = {unicodedata.category(character)[0] for character in text if not character.isspace()}
    return kinds == {"P"}
