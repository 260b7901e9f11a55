"""BLEU-4 of Chinese replies, as the published ChatGLM-6B evaluation computes it: NLTK's sentence BLEU on characters with
smoothing method 3, in percent."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from ptuning.evaluation.metrics.metric import Metric


def bleu_4(prediction: str, reference: str) -> float:
    """BLEU-4 of one reply, 0 to 100."""
    sentence_bleu, smoothing = _nltk()
    return float(sentence_bleu([list(reference)], list(prediction), smoothing_function=smoothing)) * 100


@functools.cache
def _nltk() -> tuple[Any, Any]:
    """NLTK's sentence BLEU and smoothing method 3, imported without the warnings that its sources cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

        return sentence_bleu, SmoothingFunction().method3


BLEU_4 = Metric("bleu-4", "BLEU-4", bleu_4, first=True)
