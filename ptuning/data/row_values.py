"""One row, and the checks of the values that it is made of."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptuning.core.characters import is_blank
from ptuning.core.errors import UserError
from ptuning.core.reading import parse_json, shortened


@dataclass(frozen=True)
class Row:
    """One row: prompt, reply, earlier rounds and its place in the file.

    ``response`` is None where no reply column was asked for. ``history`` is None where the rows have none, else a list
    of (query, reply), empty for a first round. ``source`` is ``file:line`` (``file:row n`` for parquet). ``system`` is
    the text that comes before the first question ("" for none).
    """

    prompt: str
    response: str | None
    history: list[tuple[str, str]] | None
    source: str
    system: str = ""


class UnusableRow(Exception):  # noqa: N818 - not a failure: the row is left out and counted
    """A row that is well formed but cannot become a training example; the message is the reason it is counted under."""


def text_value(record: dict[str, Any], column: str, source: str) -> str:
    """The text of a column, "" where it is absent, null or blank: nothing of it can be seen.

    Raises :class:`UserError` where it holds anything but a text.
    """
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        write = "save it as UTF-8 text, give --encoding" if isinstance(value, bytes) else "write it in quotes"
        raise UserError(
            f"{source}: column {column!r} must be a text, but holds {kind_of(value)}; {write}, or name another column"
        )
    return "" if is_blank(value) else value


def history_value(value: Any, column: str, source: str) -> list[tuple[str, str]]:
    """A history value, a list or the same as JSON text, as pairs; null, "" and [] are the empty history.

    Raises :class:`UserError` for anything else.
    """
    entries = list_value(value, column, source, "[query, reply] pairs", "write [] for a first round")
    return list(_pairs(entries, column, source))


def list_value(value: Any, column: str, source: str, of_what: str, remedy: str) -> list[Any]:
    """A list, or the same as JSON text (tables have no lists); null and "" are the empty one.

    Raises :class:`UserError` for anything else, naming ``of_what`` the list must be and the ``remedy``.
    """
    if isinstance(value, str) and value.strip():
        with contextlib.suppress(ValueError):  # the message below shows the text
            value = parse_json(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        raise UserError(
            f"{source}: column {column!r} must be a list of {of_what}, but holds {kind_of(value)}; {remedy}"
        )
    return value


def kind_of(value: Any) -> str:
    """What a value is, in words, with its beginning."""
    names = {
        bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a text",
        bytes: "bytes that are no UTF-8 text",
    }  # fmt: skip
    if value is None:
        return "null"
    return f"{names.get(type(value), f'a {type(value).__name__}')} ({shortened(repr(value), 60)})"


def _pairs(entries: list[Any], column: str, source: str) -> Iterator[tuple[str, str]]:
    for i, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)):
            raise UserError(
                f"{source}: entry {i} of column {column!r} must be a pair of texts [query, reply], but is "
                f"{kind_of(entry)}; correct that row"
            )
        yield entry[0], entry[1]
