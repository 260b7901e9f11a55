"""Reads training and evaluation rows from .json, .jsonl, .csv and .parquet files, and says where a file is wrong.

A row keeps the place it came from (``file:line``), so that every later message can name it. The readers of the file
formats give plain dictionaries with their places; :mod:`ptuning.data.row_forms` makes rows of them, and what is left
out or changed is counted here.
"""

import difflib
import logging
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ptuning.core.characters import is_blank, whole_characters
from ptuning.core.errors import UserError
from ptuning.data.row_files import read_records
from ptuning.data.row_forms import Columns, Form, choose_form, require_column
from ptuning.data.row_values import Row, UnusableRow

__all__ = ["Row", "Rows", "every_round", "mixed", "read_rows"]

logger = logging.getLogger(__name__)

HALF_CHARACTERS = "halves of characters (lone surrogates) replaced by \ufffd"


class Rows(list[Row]):
    """The rows that can be used, as a list.

    Attributes:
        total: how many rows were read.
        dropped: reason → how many rows were left out for it.
        changed: what → how many rows are used without that part, or with something in its place.
        form: columns, alpaca, sharegpt or messages.
        columns: all columns of the file.
        per_round: every round of a dialogue is a row of its own (see :func:`every_round`).
    """

    def __init__(
        self,
        rows: Iterable[Row] = (),
        *,
        total: int = 0,
        dropped: dict[str, int] | None = None,
        changed: dict[str, int] | None = None,
        form: str = "columns",
        columns: Iterable[str] = (),
        per_round: bool = False,
    ) -> None:
        super().__init__(rows)
        self.total = total
        self.dropped = dict(dropped or {})
        self.changed = dict(changed or {})
        self.form = form
        self.columns = tuple(columns)
        self.per_round = per_round


def read_rows(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    response_column: str | None = None,
    history_column: str | None = None,
    max_samples: int | None = None,
    row_format: str = "auto",
    encoding: str | None = None,
) -> Rows:
    """Read the rows of ``path``; ``max_samples`` (None: all) limits how many are read, from the start.

    A JSON file holds one object a line, one array, or objects written over several lines; a history is a list of
    [query, reply] pairs (in a .csv the same as JSON text), and none or null is an empty one. Without ``prompt_column``
    the form of the rows is found by their keys, or is ``row_format``. ``encoding``: of the file (None: UTF-8). Rows whose
    prompt or reply is blank (nothing of it can be seen) are left out, counted in ``dropped`` and reported by one warning.

    Raises :class:`UserError` with file, line and column for a file that is missing, empty, badly encoded or broken, for
    a column that is not there, a value of the wrong type, and where no row is left.
    """
    if max_samples is not None and max_samples < 1:
        raise UserError(f"the limit of rows for {path} is {max_samples}; allowed: 1 or more, or no limit")
    path = Path(path)
    records = list(islice(read_records(path, encoding), max_samples))
    if not records:
        raise UserError(f"{path}: no rows in this file; a row is an object like {{\"{prompt_column or 'content'}\": \"…\"}}")
    columns = list({name: None for _, record in records for name in record})  # a dictionary keeps their order
    named = Columns(prompt_column, response_column, history_column)
    form = choose_form(path, columns, row_format, named)
    if form.name == "columns" and history_column is not None and history_column not in columns:
        _check_history_column(path, history_column, [c for c in columns if c not in (prompt_column, response_column)])
    if prompt_column is None:
        logger.info("%s: rows of the form %s (%s)", path, form.name, ", ".join(form.columns))
    rows, left_out, changed = [], _Tally(), _Tally()
    for source, record in records:
        try:
            row, left = form.read(record, source)
        except UnusableRow as reason:
            left_out.add(str(reason), source)
            continue
        if empty := _empty_parts(row, form):
            left_out.add(empty, source)
            continue
        whole = _with_whole_characters(row)
        for change in (left, None if whole == row else HALF_CHARACTERS):
            if change is not None:
                changed.add(change, source)
        rows.append(whole)
    if left_out.counts:
        summary = f"dropped {left_out.counts.total()} of {len(records)} rows: {left_out}"
        if not rows:
            raise UserError(f"{path}: no usable row, {summary}; give every row a prompt and a reply")
        logger.warning("%s: %s", path, summary)
    if changed.counts:
        logger.warning("%s: changed %d of %d rows: %s", path, changed.counts.total(), len(records), changed)
    return Rows(
        rows, total=len(records), dropped=left_out.counts, changed=changed.counts, form=form.name, columns=columns
    )


class _Tally:
    """Counts rows by reason and remembers the first place of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, source: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, source)

    def __str__(self) -> str:
        return ", ".join(f"{n} {reason} (first: {self.first[reason]})" for reason, n in self.counts.most_common())


def _with_whole_characters(row: Row) -> Row:
    """The row as UTF-8 can hold it: JSON escapes can name half of a character, which no tokenizer and no file takes."""
    history = row.history and [(whole_characters(query), whole_characters(reply)) for query, reply in row.history]
    return replace(
        row,
        prompt=whole_characters(row.prompt),
        response=row.response and whole_characters(row.response),
        history=history,
        system=whole_characters(row.system),
    )


def _empty_parts(row: Row, form: Form) -> str:
    """Why a row cannot be used, or ""."""
    texts = ((form.prompt_column, row.prompt), (form.response_column, row.response))
    empty = [str(name) for name, text in texts if text == ""]
    return "empty " + " and ".join(empty) if empty else ""


def _check_history_column(path: Path, column: str, others: list[str]) -> None:
    """No row has the history column: that is allowed (all first rounds), unless its name looks like a slip."""
    if difflib.get_close_matches(column, others, n=1):
        require_column(path, column, others)
    logger.warning("%s: no row has the history column %r; every row counts as a first round", path, column)


def every_round(rows: Rows) -> Rows:
    """Every round of the dialogues as a row of its own, with the rounds before it as its history.

    The context of a prefix LM is seen in both directions up to ``<sop>``, so an earlier reply cannot be learnt in the
    place where it is context for a later one: each needs a row. Rounds with a blank question or reply are left out and
    counted.
    """
    expanded: list[Row] = []
    left_out = _Tally()
    for row in rows:
        rounds = [*(row.history or []), (row.prompt, row.response or "")]
        for number, (query, reply) in enumerate(rounds):
            place = row.source if len(rounds) == 1 else f"{row.source} round {number}"
            if is_blank(query) or is_blank(reply):
                left_out.add("rounds with an empty question or reply", place)
                continue
            history = row.history if row.history is None else rounds[:number]
            expanded.append(replace(row, prompt=query, response=reply, history=history, source=place))
    if left_out.counts:
        logger.warning("a row for every round: left out %s", left_out)
    logger.info("a row for every round: %d rows became %d", len(rows), len(expanded))
    dropped = dict(Counter(rows.dropped) + left_out.counts)
    total = rows.total + len(expanded) + left_out.counts.total() - len(rows)
    return _like(rows, expanded, total=total, dropped=dropped, per_round=True)


def mixed(rows: Rows, others: Rows, share: float, seed: int) -> Rows:
    """``rows`` with as many of ``others`` mixed in as make up ``share`` of the result (0 < share < 1, at least one row).

    The others are drawn without repetition while there are enough of them, and the result is in random order; both
    follow from ``seed``. A file too small is used several times over, with a warning.
    """
    draw = random.Random(seed)
    count = max(1, round(share / (1 - share) * len(rows)))
    chosen: list[Row] = []
    while len(chosen) < count:
        chosen += draw.sample(others, min(len(others), count - len(chosen)))
    if count > len(others):
        logger.warning(
            "mixed in: %d rows are needed and the file has %d: its rows are used up to %d times",
            count, len(others), -(-count // len(others)),
        )
    result = [*rows, *chosen]
    draw.shuffle(result)
    logger.info("mixed in: %d rows, %.1f %% of %d training rows", count, 100 * count / len(result), len(result))
    dropped = dict(Counter(rows.dropped) + Counter(others.dropped))
    changed = dict(Counter(rows.changed) + Counter(others.changed))
    return _like(rows, result, total=rows.total + others.total, dropped=dropped, changed=changed)


def _like(rows: Rows, content: Iterable[Row], **changes: Any) -> Rows:
    return Rows(content, **{name: getattr(rows, name) for name in vars(rows)} | changes)
