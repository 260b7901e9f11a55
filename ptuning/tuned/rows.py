"""Reads training and evaluation rows from .json, .jsonl, .csv and .parquet files, and says where a file is wrong.

A row keeps the place it came from (``file:line``), so that every later message can name it. The readers of the file
formats give plain dictionaries with their places; everything about columns happens in :func:`read_rows`.
"""

import contextlib
import difflib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ptuning.plain.errors import UserError
from ptuning.tuned.row_files import read_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row: prompt, reply, earlier rounds and where it stands.

    ``response`` is None where no reply column was asked for. ``history`` is None without a history column, else a
    list of (query, reply), empty for a first round. ``source`` is ``file:line`` (``file:row n`` for parquet).
    """

    prompt: str
    response: str | None
    history: list[tuple[str, str]] | None
    source: str


class Rows(list[Row]):
    """The rows that can be used, as a list; ``total`` rows were read and ``dropped`` counts the others by reason."""

    def __init__(self, rows: Iterable[Row] = (), *, total: int = 0, dropped: dict[str, int] | None = None) -> None:
        super().__init__(rows)
        self.total = total
        self.dropped = dict(dropped or {})


def read_rows(
    path: str | Path,
    *,
    prompt_column: str,
    response_column: str | None = None,
    history_column: str | None = None,
    max_samples: int | None = None,
) -> Rows:
    """Read the rows of ``path``; ``max_samples`` (None: all) limits how many are read, from the start.

    A JSON file holds one object a line, one array, or objects written over several lines; a history is a list of
    [query, reply] pairs (in a .csv the same as JSON text), and none or null is an empty one. Rows whose prompt or
    reply is blank are left out, counted in ``dropped`` and reported by one warning.

    Raises :class:`UserError` with file, line and column for a file that is missing, empty, badly encoded or broken, for
    a column that is not there, a value of the wrong type, and where no row is left.
    """
    if max_samples is not None and max_samples < 1:
        raise UserError(f"the limit of rows for {path} is {max_samples}; allowed: 1 or more, or no limit")
    path = Path(path)
    records = list(islice(read_records(path), max_samples))
    if not records:
        raise UserError(f"{path}: no rows in this file; a row is an object like {{\"{prompt_column}\": \"…\"}}")
    columns = {name: None for _, record in records for name in record}  # a dictionary keeps their order
    for column in (prompt_column, response_column):
        if column is not None and column not in columns:
            raise UserError(f"column {column!r} not in {path} {_what_there_is(column, list(columns))}")
    if history_column is not None and history_column not in columns:
        _check_history_column(path, history_column, [c for c in columns if c not in (prompt_column, response_column)])

    rows = []
    dropped: Counter[str] = Counter()
    first_dropped: dict[str, str] = {}
    for source, record in records:
        prompt = _text(record, prompt_column, source)
        response = None if response_column is None else _text(record, response_column, source)
        history = None if history_column is None else _history(record.get(history_column), history_column, source)
        empty = [column for column, text in ((prompt_column, prompt), (response_column, response)) if text == ""]
        if empty:
            reason = "empty " + " and ".join(str(column) for column in empty)
            dropped[reason] += 1
            first_dropped.setdefault(reason, source)
        else:
            rows.append(Row(prompt, response, history, source))
    if dropped:
        reasons = ", ".join(f"{n} {reason} (first: {first_dropped[reason]})" for reason, n in dropped.most_common())
        summary = f"dropped {dropped.total()} of {len(records)} rows: {reasons}"
        if not rows:
            raise UserError(f"{path}: no usable row, {summary}; give every row a prompt and a reply")
        logger.warning("%s: %s", path, summary)
    return Rows(rows, total=len(records), dropped=dict(dropped))


def _what_there_is(column: str, columns: list[str]) -> str:
    """The end of a message about a missing column: the columns there are, and the one that was probably meant."""
    near = difflib.get_close_matches(column, columns, n=1)
    ending = f" Did you mean {near[0]!r}?" if near else " Name the right one with --prompt_column, --response_column."
    return f"(has: {', '.join(columns)})." + ending


def _check_history_column(path: Path, column: str, others: list[str]) -> None:
    """No row has the history column: that is allowed (all first rounds), unless its name looks like a slip."""
    if difflib.get_close_matches(column, others, n=1):
        raise UserError(f"column {column!r} not in {path} {_what_there_is(column, others)}")
    logger.warning("%s: no row has the history column %r; every row counts as a first round", path, column)


def _text(record: dict[str, Any], column: str, source: str) -> str:
    """The text of a column, "" where it is absent, null or blank."""
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{source}: column {column!r} must be a text, but holds {_kind(value)}; write it in quotes, or name "
            "another column"
        )
    return value if value.strip() else ""


def _history(value: Any, column: str, source: str) -> list[tuple[str, str]]:
    """A history value, a list or the same as JSON text, as pairs; null, "" and [] are the empty history."""
    if isinstance(value, str) and value.strip():
        with contextlib.suppress(ValueError):  # the message below shows the text
            value = json.loads(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        raise UserError(
            f"{source}: column {column!r} must be a list of [query, reply] pairs, but holds {_kind(value)}; "
            "write [] for a first round"
        )
    return list(_pairs(value, column, source))


def _pairs(entries: list[Any], column: str, source: str) -> Iterator[tuple[str, str]]:
    for i, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)):
            raise UserError(
                f"{source}: entry {i} of column {column!r} must be a pair of texts [query, reply], but is "
                f"{_kind(entry)}; correct that row"
            )
        yield entry[0], entry[1]


def _kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return f"{names.get(type(value), 'a text')} ({repr(value)[:60]})"
