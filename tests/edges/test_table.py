"""Aligned tables: every column as wide as its widest cell, as a terminal counts."""

from ptuning.edges.table import display_width, table


def test_numbers_stand_to_the_right_and_names_to_the_left():
    lines = table([["scores", "bleu-4", "truncated"], ["base", "8.10", "1"], ["checkpoint-200", "10.00", ""]], first=8)
    assert lines == [
        "scores           bleu-4  truncated",
        "base               8.10          1",
        "checkpoint-200    10.00",
    ]


def test_chinese_characters_are_two_columns_wide():
    assert [display_width(text) for text in ("衬衫", "ＡＢ", "ab", "e\u0301", "")] == [4, 4, 2, 1, 0]
    lines = table([["衬衫", 1], ["shirt", 2]], others=1, indent="  ")
    assert lines == ["  衬衫   1", "  shirt  2"]


def test_a_cell_is_one_line_and_cannot_drive_the_terminal():
    lines = table([["a\nb\x1b[31m", "x"], ["c", "yy"]], others=0, align="left")
    assert lines == ["a\\nb\\x1b[31m  x", "c" + " " * 13 + "yy"]
