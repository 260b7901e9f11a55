"""ROUGE-1, ROUGE-2 and ROUGE-L of Chinese replies, as the published ChatGLM-6B evaluation computes them: words by jieba,
f of ``rouge_chinese``, in percent."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.words import word_tokenizer

# rouge_chinese keeps a dictionary entry for every pair of words: beyond this many the same number is computed here.
MAX_LCS_PAIRS = 1_000_000


class _Tools(NamedTuple):
    cut: Any  # text -> words
    rouge: Any  # rouge_chinese.Rouge for ROUGE-1, -2 and -L
    rouge_n: Any  # the same without ROUGE-L


def rouge_1(prediction: str, reference: str) -> float:
    """f of the words that both texts have, 0 to 100."""
    return _rouge(prediction, reference)["rouge-1"] * 100


def rouge_2(prediction: str, reference: str) -> float:
    """f of the pairs of words that both texts have, 0 to 100."""
    return _rouge(prediction, reference)["rouge-2"] * 100


def rouge_l(prediction: str, reference: str) -> float:
    """f of the longest common subsequence of words, 0 to 100."""
    return _rouge(prediction, reference)["rouge-l"] * 100


@functools.lru_cache(maxsize=1)  # the three scores of one pair are asked for one after another
def _rouge(prediction: str, reference: str) -> dict[str, float]:
    """f of ROUGE-1, -2 and -L, 0 to 1."""
    tools = _tools()
    prediction, reference = (" ".join(tools.cut(text)) for text in (prediction, reference))
    ours, theirs = (_words(tools.rouge, text) for text in (prediction, reference))
    if len(ours) * len(theirs) <= MAX_LCS_PAIRS:
        return {name: float(value["f"]) for name, value in tools.rouge.get_scores(prediction, reference)[0].items()}
    scores = {name: float(value["f"]) for name, value in tools.rouge_n.get_scores(prediction, reference)[0].items()}
    common = lcs_length(ours, theirs)
    precision, recall = common / len(ours), common / len(theirs)
    scores["rouge-l"] = 2.0 * precision * recall / (precision + recall + 1e-8)
    return scores


def _words(rouge: Any, text: str) -> list[str]:
    """The words that ``rouge_chinese`` compares for ROUGE-L: it cuts sentences first, and a blank line is one word."""
    return [word for line in rouge.cut_sent(text) if line for word in " ".join(line.split()).split(" ")]


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, in memory that grows with the lengths and not with their product.

    Source: bit-vector algorithm of Hyyrö, "Bit-Parallel LCS-length Computation Revisited" (2004).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    mask = (1 << len(first)) - 1
    row = mask
    for word in second:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & mask
    return len(first) - row.bit_count()


@functools.cache
def _tools() -> _Tools:
    """Import jieba and rouge_chinese, without the warnings that they cause while loading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources in their sources
        from rouge_chinese import Rouge

        return _Tools(word_tokenizer().cut, Rouge(), Rouge(metrics=["rouge-1", "rouge-2"]))


ROUGE_1 = Metric("rouge-1", "ROUGE-1", rouge_1, headline=False)
ROUGE_2 = Metric("rouge-2", "ROUGE-2", rouge_2, headline=False)
ROUGE_L = Metric("rouge-l", "ROUGE-L", rouge_l)
