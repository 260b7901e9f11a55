"""The forms of a row: named columns, alpaca, and lists of turns (sharegpt, messages); found by their keys or named."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.core.characters import is_blank
from ptuning.core.choices import RowFormat, values_of
from ptuning.core.errors import UserError
from ptuning.core.reading import listed
from ptuning.data.dialogue_turns import rounds_of
from ptuning.data.row_values import Row, history_value, text_value

LEFT_OUT_QUESTION = "last question without a reply left out"

# Columns that data sets of this kind have had; tried in this order where nobody named a column.
_KNOWN_COLUMNS = (
    ("content", "summary"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("prompt", "completion"),
)


class MissingColumnError(UserError):
    """A column that was asked for is in no row."""


@dataclass(frozen=True)
class Columns:
    """Names of columns that were asked for; None: not given."""

    prompt: str | None = None
    response: str | None = None
    history: str | None = None


@dataclass(frozen=True)
class Form:
    """How the rows of one file are read.

    Attributes:
        name: a :data:`~ptuning.core.choices.RowFormat`, but not auto.
        columns: the columns it reads.
        read: a record and its place → the row and, where something of it was left out, what. It raises
            :class:`~ptuning.data.row_values.UnusableRow` for a row to be left out and :class:`UserError` for a mistake.
        prompt_column: what to call the prompt in a message.
        response_column: what to call the reply; None: rows without replies.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[dict[str, Any], str], tuple[Row, str | None]]
    prompt_column: str
    response_column: str | None


def choose_form(path: Path, present: Sequence[str], row_format: str, named: Columns) -> Form:
    """The form of the rows in ``path``, which has the columns ``present``.

    ``row_format`` "auto": the named columns, else by the keys. Raises :class:`UserError` where a column is missing, with
    the columns there are and the nearest name, or where no form fits.
    """
    if row_format not in values_of(RowFormat):
        raise UserError(f"--row_format {row_format}: allowed are {', '.join(values_of(RowFormat))}")
    if named.prompt is not None and row_format in ("auto", "columns"):
        return _columns_form(path, present, named.prompt, named.response, named.history)
    if row_format == "alpaca" or (row_format == "auto" and {"instruction", "output"} <= set(present)):
        for column in ("instruction", "output"):
            require_column(path, column, present, row_format)
        return _alpaca_form(present)
    for name, column in (("sharegpt", "conversations"), ("messages", "messages")):
        if row_format == name or (row_format == "auto" and column in present):
            require_column(path, column, present, row_format)
            return _turns_form(name, column)
    for prompt, response in _KNOWN_COLUMNS if row_format == "auto" else ():
        if prompt in present and response in present:
            return _columns_form(path, present, prompt, response, "history" if "history" in present else None)
    raise UserError(
        f"{path}: no known form of rows (has: {listed(present)}); name the columns with --prompt_column and "
        "--response_column, or rename them: content and summary, prompt and response, instruction and output (alpaca), "
        "conversations (sharegpt) or messages"
    )


def require_column(path: Path, column: str, present: Sequence[str], row_format: str = "columns") -> None:
    """Raise :class:`MissingColumnError` where no row has ``column``: what there is instead, and what was probably meant."""
    if column in present:
        return
    near = difflib.get_close_matches(column, present, n=1)
    if near:
        remedy = f"Did you mean {near[0]!r}?"
    elif row_format in ("auto", "columns"):
        remedy = "Name the right one with --prompt_column, --response_column."
    else:
        remedy = f"These are not rows of --row_format {row_format}; leave it out to have the form found by its keys."
    raise MissingColumnError(f"column {column!r} not in {path} (has: {listed(present)}). {remedy}")


def _columns_form(path: Path, present: Sequence[str], prompt: str, response: str | None, history: str | None) -> Form:
    for column in (prompt, response):
        if column is not None:
            require_column(path, column, present)

    def read(record: dict[str, Any], source: str) -> tuple[Row, str | None]:
        question = text_value(record, prompt, source)
        reply = None if response is None else text_value(record, response, source)
        rounds = None if history is None else history_value(record.get(history), history, source)
        return Row(question, reply, rounds, source), None

    columns = tuple(column for column in (prompt, response, history) if column is not None)
    return Form("columns", columns, read, prompt, response)


def _alpaca_form(present: Sequence[str]) -> Form:
    columns = tuple(column for column in ("instruction", "input", "output", "system", "history") if column in present)

    def read(record: dict[str, Any], source: str) -> tuple[Row, str | None]:
        instruction, more, output, system = (
            text_value(record, column, source) for column in ("instruction", "input", "output", "system")
        )
        history = history_value(record.get("history"), "history", source) if "history" in columns else None
        return Row("\n".join(text for text in (instruction, more) if text), output, history, source, system), None

    return Form("alpaca", columns, read, "instruction", "output")


def _turns_form(name: str, column: str) -> Form:
    def read(record: dict[str, Any], source: str) -> tuple[Row, str | None]:
        rounds = rounds_of(record, column, source)
        system = rounds.system or text_value(record, "system", source)  # some files keep it beside the turns
        prompt, response = ("" if is_blank(text) else text for text in rounds.pairs[-1])
        left = LEFT_OUT_QUESTION if rounds.question_left else None
        return Row(prompt, response, rounds.pairs[:-1], source, system), left

    return Form(name, (column, "system"), read, "question", "reply")
