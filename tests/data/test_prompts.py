"""The prompt form: the plain query, rounds, and the published trainer's wrapping of first rounds."""

import pytest

from ptuning.core.errors import UserError
from ptuning.data.prompts import build_prompt


@pytest.mark.parametrize("history", [None, [], ()])
def test_first_round_is_the_plain_query(history):
    assert build_prompt("你好", history) == "你好"


def test_rounds_count_from_zero_and_end_in_the_cue():
    assert build_prompt("第三问", [("第一问", "第一答"), ["第二问\n换行", ""]]) == (
        "[Round 0]\n问：第一问\n答：第一答\n[Round 1]\n问：第二问\n换行\n答：\n[Round 2]\n问：第三问\n答："
    )


def test_legacy_wraps_an_empty_history_only():
    assert build_prompt("你好", [], legacy=True) == "[Round 0]\n问：你好\n答："
    assert build_prompt("你好", None, legacy=True) == "你好"
    assert build_prompt("b", [("q", "a")], legacy=True) == build_prompt("b", [("q", "a")])


@pytest.mark.parametrize("entry", ["问答", ("q",), ("q", "a", "b"), ("q", None), ["q", 3]])
def test_history_entries_are_pairs_of_texts(entry):
    with pytest.raises(UserError, match=r"history entry 1 is .*allowed is a pair of texts"):
        build_prompt("你好", [("q", "a"), entry])
