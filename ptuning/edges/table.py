"""Aligned text tables for the terminal; a Chinese character is two columns wide there."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from ptuning.edges.output import inline

_GAP = "  "


def table(
    rows: Sequence[Sequence[object]],
    *,
    first: int = 0,
    others: int = 7,
    align: Literal["left", "right"] = "right",
    indent: str = "",
) -> list[str]:
    """Lines of a table.

    Args:
        rows: cells, the heads among them; every row as many.
        first: least width of the first column, which is aligned to the left.
        others: least width of each other column.
        align: of the other columns.
        indent: before each line.
    """
    cells = [[inline(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    widths = [max(width, others if place else first) for place, width in enumerate(widths)]
    return [indent + _line(row, widths, align) for row in cells]


def _line(cells: Sequence[str], widths: Sequence[int], align: str) -> str:
    sides = ["left", *[align] * (len(widths) - 1)]
    return _GAP.join(map(_padded, cells, widths, sides)).rstrip()


def display_width(text: str) -> int:
    """How many columns of a terminal a line of text takes: wide characters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _padded(text: str, width: int, align: str) -> str:
    blanks = " " * (width - display_width(text))
    return text + blanks if align == "left" else blanks + text
