"""Scores: the golden pairs, empty replies, long replies, silence, and the real libraries behind them."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptuning.evaluation.metrics import rouge
from ptuning.evaluation.metrics.registry import corpus_metrics, row_metrics
from ptuning.evaluation.metrics.rouge import lcs_length
from ptuning.evaluation.metrics.scoring import score, score_pair

CASES = json.loads((Path(__file__).parents[2] / "golden/chatglm-tiny/cases.json").read_text(encoding="utf-8"))["metrics"]
SCORE_NAMES = [metric.name for metric in row_metrics()]
SET_SCORE_NAMES = [metric.name for metric in corpus_metrics()]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden_pairs(case):
    assert score_pair(case["prediction"], case["label"]) == {name: case[name] for name in SCORE_NAMES}


def test_means_over_pairs_and_empty_replies():
    predictions = [case["prediction"] for case in CASES] + ["", "　\n"]
    means = score(predictions, [case["label"] for case in CASES] + ["参考", "参考"])
    for name in SCORE_NAMES:
        assert means[name] == pytest.approx(sum(case[name] for case in CASES) / (len(CASES) + 2), abs=1e-9)
    assert means["empty_predictions"] == 2


@pytest.mark.parametrize("pair", [("", "x"), ("x", ""), ("", ""), ("  ", "x"), ("x", "\u3000\n\t")])
def test_blank_texts_score_zero(pair):
    assert score_pair(*pair) == dict.fromkeys(SCORE_NAMES, 0.0)


@pytest.mark.parametrize("pair", [("。", "。"), ("？\n ？", "！"), ("\x00", "\u200b"), (" a ", "a"), ("😀", "😀")])
def test_odd_texts_score_finite(pair):
    assert all(0 <= value <= 100 for value in score_pair(*pair).values())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_pair_scores_finite(prediction, reference):
    scores = score_pair(prediction, reference)
    assert list(scores) == list(SCORE_NAMES)
    assert all(math.isfinite(value) and 0 <= value <= 100 for value in scores.values())


def test_blank_and_punctuation_pairs_are_counted_and_finite():
    pairs = [("", "x"), ("x", ""), ("", ""), ("  ", "x"), ("。", "。"), ("？！\n", "好"), ("好。", "好。")]
    means = score(*zip(*pairs, strict=True))
    assert all(math.isfinite(value) for value in means.values())
    assert (means["empty_predictions"], means["empty_references"], means["punctuation_predictions"]) == (3, 2, 2)


def test_sacrebleu_stands_beside_the_published_scores():
    """Its numbers are the library's own, over the whole set."""
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is an optional extra")
    ours, theirs = ["今天天气很好。", "", "何以故"], ["今天天气不错。", "好", "何以故何以故"]
    means = score(ours, theirs)
    assert means["chrf"] == round(sacrebleu.corpus_chrf(ours, [theirs]).score, 4) > 0
    assert means["sacrebleu-zh"] == round(sacrebleu.corpus_bleu(ours, [theirs], tokenize="zh").score, 4) > 0
    assert set(SCORE_NAMES) < set(means)


def test_without_sacrebleu_the_published_scores_stay(monkeypatch):
    with_it = score(["今天天气很好"], ["今天天气不错"])
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    without = score(["今天天气很好"], ["今天天气不错"])
    assert without == {name: value for name, value in with_it.items() if name not in SET_SCORE_NAMES}


def test_long_replies_score_the_same_as_by_the_library(monkeypatch):
    words = random.Random(0).choices(["衣服 ", "好看", "，", "。", "很\n", "款式"], k=300)
    prediction, reference = "".join(words[:200]), "".join(words[100:])
    by_library = score_pair(prediction, reference)
    monkeypatch.setattr(rouge, "MAX_LCS_PAIRS", 0)
    rouge._rouge.cache_clear()
    assert score_pair(prediction, reference) == by_library


def test_very_long_replies():
    text = "这款衣服的面料柔软，" * 4000
    scores = score_pair(text, text[20_000:])
    assert 60 < scores["rouge-l"] < 70  # half of the words: 2 * 0.5 / 1.5


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_lcs_length(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(first, second) == table[-1][-1]


@pytest.mark.parametrize("pairs", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_numbers_of_texts_must_agree(pairs):
    with pytest.raises(ValueError, match="give as many of both"):
        score(*pairs)


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_heavy_imported_early():
    code = (
        "import sys; import ptuning.evaluation.metrics.scoring as m\n"
        "assert not {'jieba', 'nltk', 'rouge_chinese'} & set(sys.modules)\n"
        "m.score_pair('今天天气很好', '今天天气不错')\n"
        "assert {'jieba', 'nltk', 'rouge_chinese'} <= set(sys.modules)"
    )
    command = [sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


SCORED_BESIDE = """
import json, marshal, os, sys, tempfile
from pathlib import Path
planted = Path(tempfile.gettempdir(), "jieba.cache")
if "cache" in sys.argv:  # what another user of the machine may leave there: a dictionary in which every text is one word
    planted.write_bytes(marshal.dumps(({word[:end]: int(end == len(word)) for word in "，".join(sys.argv[2:]).split("，")
                                       for end in range(1, len(word) + 1)}, 1)))
if "words" in sys.argv:  # what the program around us may do with the tokenizer that the process shares
    import jieba
    jieba.setLogLevel(60)
    for word in "，".join(sys.argv[2:]).split("，"):
        jieba.add_word(word, 10**9)
before = sorted(os.listdir(planted.parent))
from ptuning.evaluation.metrics.scoring import score_pair
print(json.dumps(score_pair(*sys.argv[2:])))
assert sorted(os.listdir(planted.parent)) == before, "nothing is left in a folder that others share"
"""


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["nothing", "cache", "words"])
def test_nobody_else_decides_how_words_are_cut(beside, tmp_path):
    pair = ["今天天气很好，适合出门散步", "今天天气不错，适合出门走走"]
    done = subprocess.run(
        [sys.executable, "-c", SCORED_BESIDE, beside, *pair], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3], env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == score_pair(*pair)


def test_texts_of_which_nothing_can_be_seen_are_empty():
    assert set(score_pair("\u200b", "\u200b").values()) == {0.0}
    found = score(["\u200b", "\ufeff\u2060", "好"], ["好", "\u200b", "好"])
    assert (found["empty_predictions"], found["empty_references"]) == (2, 1)
