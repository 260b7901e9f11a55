"""ROUGE-1/2/L and BLEU-4 of Chinese replies, as the published ChatGLM-6B evaluation computes them.

Words are cut by jieba and scored by ``rouge_chinese`` (its f value); BLEU-4 is NLTK's sentence BLEU on characters with
smoothing method 3. All scores are percentages, rounded to 4 digits per pair before the mean is taken.

Beside them, never instead: chrF and BLEU with Chinese tokenisation over the whole set as sacrebleu computes them, where that
is installed (``pip install ptuning[metrics]``).
"""

import functools
import logging
import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ptuning.core.characters import is_blank

SCORE_NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
SET_SCORE_NAMES = ("chrf", "sacrebleu-zh")
"""Scores of a whole set by sacrebleu; there where it is installed."""
# rouge_chinese keeps a dictionary entry for every pair of words: beyond this many the same number is computed here.
MAX_LCS_PAIRS = 1_000_000


class _Tools(NamedTuple):
    cut: Any  # text -> words
    rouge: Any  # rouge_chinese.Rouge for ROUGE-1, -2 and -L
    rouge_n: Any  # the same without ROUGE-L
    sentence_bleu: Any
    smoothing: Any


def score_pair(prediction: str, reference: str) -> dict[str, float]:
    """Scores of one reply against its reference: ``rouge-1``, ``rouge-2``, ``rouge-l``, ``bleu-4`` in percent.

    Always finite: where one of the two has nothing but blanks, every score is 0.
    """
    if is_blank(prediction) or is_blank(reference):
        return dict.fromkeys(SCORE_NAMES, 0.0)
    tools = _tools()
    words = [" ".join(tools.cut(text)) for text in (prediction, reference)]
    scores = _rouge(tools, *words)
    scores["bleu-4"] = tools.sentence_bleu([list(reference)], list(prediction), smoothing_function=tools.smoothing)
    return {name: round(float(scores[name]) * 100, 4) for name in SCORE_NAMES}


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean scores over all pairs, the counts of :func:`summary`, and sacrebleu's scores where it is installed.

    Raises ValueError where the two rows differ in length or are empty.
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
        the means; ``empty_predictions`` and ``empty_references`` (blank; such a pair scores 0) and
        ``punctuation_predictions`` (no letter, digit or symbol in them) as counts; ``chrf`` and ``sacrebleu-zh`` of the
        whole set where sacrebleu is installed.
    """
    means: dict[str, float] = {name: math.fsum(pair[name] for pair in pairs) / len(pairs) for name in SCORE_NAMES}
    means["empty_predictions"] = sum(map(is_blank, predictions))
    means["empty_references"] = sum(map(is_blank, references))
    means["punctuation_predictions"] = sum(is_punctuation(prediction) for prediction in predictions)
    return means | set_scores(predictions, references)


def is_punctuation(text: str) -> bool:
    """Whether a text has something in it besides blanks, and that is punctuation only."""
    kinds = {unicodedata.category(character)[0] for character in text if not character.isspace()}
    return kinds == {"P"}


def set_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``chrf`` and ``sacrebleu-zh`` (BLEU with sacrebleu's Chinese tokenisation) of a whole set, 0 to 100; empty without
    sacrebleu. Neither is a mean of rows, so neither has a value per row."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        return {}
    ours, theirs = list(predictions), [list(references)]
    bleu = BLEU(tokenize="zh", force=True)  # force: no advice on standard error about texts that look tokenised
    values = (CHRF().corpus_score(ours, theirs).score, bleu.corpus_score(ours, theirs).score)
    return {name: round(float(value), 4) for name, value in zip(SET_SCORE_NAMES, values, strict=True)}


def _rouge(tools: _Tools, prediction: str, reference: str) -> dict[str, float]:
    """f of ROUGE-1, -2 and -L for two texts of words joined by blanks."""
    ours, theirs = (_words(tools.rouge, text) for text in (prediction, reference))
    if len(ours) * len(theirs) <= MAX_LCS_PAIRS:
        return {name: value["f"] for name, value in tools.rouge.get_scores(prediction, reference)[0].items()}
    scores = {name: value["f"] for name, value in tools.rouge_n.get_scores(prediction, reference)[0].items()}
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
    """Import jieba, rouge_chinese and NLTK, without the warnings that they cause while loading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources in their sources
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
        from rouge_chinese import Rouge

        rouge_n = Rouge(metrics=["rouge-1", "rouge-2"])
        return _Tools(word_tokenizer().cut, Rouge(), rouge_n, sentence_bleu, SmoothingFunction().method3)


def word_tokenizer() -> Any:
    """A tokenizer of jieba's that knows the dictionary which ships with it, and nothing else.

    jieba's own way keeps the counted words in ``jieba.cache`` in the shared temporary folder and believes whatever lies
    there, so another user could decide the scores; and the tokenizer behind ``jieba.cut`` is the whole process's, whose
    words any program may have changed. To count them anew takes no longer than to read that file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba

    jieba.setLogLevel(logging.WARNING)  # it logs to a handler of its own
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
