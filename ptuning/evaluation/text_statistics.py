"""Length and repetition of answers: how long they are, how many are empty, truncated or repetitive."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ptuning.evaluation.answers import ScoredAnswer

REPETITIVE = 50.0
"""Percent of repeated 4-grams from which an answer counts as going round in circles."""


def repeated_ngrams(text: str, n: int = 4) -> float:
    """Percent of a text's n-grams of characters (blanks left out) that stood in it before; 0 for a text shorter than n.

    An answer that says something new all along has next to none; ``何以故`` over and over comes near 100.
    """
    letters = "".join(text.split())
    grams = [letters[start : start + n] for start in range(len(letters) - n + 1)]
    return 100.0 * (1 - len(set(grams)) / len(grams)) if grams else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie: the nearest one that occurs."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]


def text_statistics(answers: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Statistics of at least one answer.

    Returns:
        ``empty_percent``; ``at_limit_percent`` (where it is known which answers the limit ended); ``repeated_4grams``
        (mean percent over all answers) and ``repetitive_percent`` (answers at half or more); ``characters_mean``,
        ``_p50``, ``_p95`` and ``_max``, for the references ``reference_characters_mean``; ``tokens_mean`` and
        ``tokens_max`` where known.
    """
    count = len(answers)
    lengths = [len(answer.answer) for answer in answers]
    repeated = [repeated_ngrams(answer.answer) for answer in answers]
    statistics: dict[str, float] = {
        "empty_percent": 100.0 * sum(not answer.answer.strip() for answer in answers) / count,
        "repeated_4grams": math.fsum(repeated) / count,
        "repetitive_percent": 100.0 * sum(share >= REPETITIVE for share in repeated) / count,
        "characters_mean": sum(lengths) / count,
        "characters_p50": percentile(lengths, 0.5),
        "characters_p95": percentile(lengths, 0.95),
        "characters_max": max(lengths),
        "reference_characters_mean": sum(len(answer.reference) for answer in answers) / count,
    }
    if all(answer.finish_reason for answer in answers):
        statistics["at_limit_percent"] = 100.0 * sum(answer.finish_reason == "length" for answer in answers) / count
    tokens = [answer.tokens for answer in answers if answer.tokens is not None]
    if len(tokens) == count:
        statistics |= {"tokens_mean": sum(tokens) / count, "tokens_max": max(tokens)}
    return {name: round(value, 4) for name, value in statistics.items()}
