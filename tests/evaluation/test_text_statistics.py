"""Length and repetition of answers."""

import pytest

from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.text_statistics import percentile, repeated_ngrams, text_statistics


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0), ("何以故", 0), ("一二三四五六七", 0), ("  \n ", 0),
        ("何以故何以故何以故", 50),  # 6 grams, 3 of them new
        ("aaaaaaaa", 80),  # 5 grams, 1 of them new
        ("一二 三四\n一二三四", 20),  # blanks do not count: 5 grams, the last has been there
    ],
)
def test_repeated_ngrams(text, share):
    assert repeated_ngrams(text) == pytest.approx(share)


def test_percentile_is_a_value_that_occurs():
    assert [percentile([5, 1, 3, 2, 4], share) for share in (0, 0.5, 0.95, 1)] == [1, 3, 5, 5]


def test_statistics_of_answers():
    texts = [("", "stop"), ("何以故何以故何以故", "length"), ("好看", "stop"), (" \n", "stop")]
    answers = [ScoredAnswer(n, "四个字的", text, finish_reason=why, tokens=n) for n, (text, why) in enumerate(texts)]
    found = text_statistics(answers)
    assert found["empty_percent"] == 50
    assert found["at_limit_percent"] == 25
    assert found["repeated_4grams"] == 12.5
    assert found["repetitive_percent"] == 25
    assert found["characters_max"] == 9
    assert found["reference_characters_mean"] == 4
    assert (found["tokens_mean"], found["tokens_max"]) == (1.5, 3)


def test_what_a_file_does_not_tell_is_left_out():
    found = text_statistics([ScoredAnswer(0, "a", "b")])
    assert not {"at_limit_percent", "tokens_mean"} & set(found)
