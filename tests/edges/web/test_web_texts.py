"""The page's texts: both languages, the same places for values."""

import re
import string

import pytest

from ptuning.edges.web.texts import Texts, text_names


@pytest.mark.parametrize("name", text_names())
def test_both_languages_take_the_same_values(name):
    values = (71, 72, 73.0)
    chinese, english = Texts("zh")(name, *values), Texts("en")(name, *values)
    assert chinese
    assert english
    assert re.findall("7[123]", chinese) == re.findall("7[123]", english)
    assert all(character in string.printable + "·↻…" for character in english), english


def test_notes_are_told_in_the_language_of_the_page():
    note = ("dropped", (3,))
    assert Texts("zh").note(note) == "对话超出长度上限，最早的 3 轮没有计入"
    assert Texts("en").note(note) == "the conversation is too long: oldest 3 rounds left out"
