"""Calibration rows: the texts whose inputs decide how weights are rounded, as ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.core.characters import is_blank
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import is_regular
from ptuning.data.preprocess import reply_ids, training_example
from ptuning.data.rows import Row, read_rows
from ptuning.data.text_encoding import read_row_text
from ptuning.data.truncation import prompt_ids


@dataclass(frozen=True)
class RowSettings:
    """Which rows are read and how long they may be.

    Attributes:
        file: .json, .jsonl, .csv, .parquet with columns, or .txt with one text a line; None: the rows that ship.
        prompt_column: as in training; likewise the other two.
        count: how many rows, taken evenly over the file.
        max_source_length: longest prompt in tokens.
        max_target_length: longest reply in tokens.
    """

    file: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    history_column: str | None = None
    count: int = 128
    max_source_length: int = 256
    max_target_length: int = 256


def shipped_rows() -> Path:
    """The rows that ship with a checkout, for tiny-chatglm."""
    return Path(__file__).resolve().parents[2] / "data" / "adgen-tiny" / "train.json"


def calibration_ids(tokenizer: Any, settings: RowSettings) -> list[list[int]]:
    """The ids of calibration rows, ``prompt [gMASK] <sop> reply <eop>`` as in training.

    A text without columns is cut in two halves, and the second one is the reply to the first.

    Raises:
        UserError: no file, or one that cannot be read; see :func:`ptuning.data.rows.read_rows`.
    """
    if settings.count < 1:
        raise UserError(f"--calibration_rows {settings.count}: must be 1 or more")
    path, prompt, response = settings.file, settings.prompt_column, settings.response_column
    if path is None:
        if not shipped_rows().is_file():
            raise UserError("--calibration_file is missing: rows with columns (.json, .csv, .parquet), or a .txt of texts")
        path, prompt, response = str(shipped_rows()), "content", "summary"
    if Path(path).suffix.lower() == ".txt":
        return [_halves(tokenizer, text, settings) for text in _spread(_lines(Path(path)), settings.count)]
    if prompt is None:
        raise UserError(f"--prompt_column is missing: which column of {path} holds the prompt (ADGEN: content)")
    rows = read_rows(path, prompt_column=prompt, response_column=response, history_column=settings.history_column)
    return [_row(tokenizer, row, settings) for row in _spread(rows, settings.count)]


def _row(tokenizer: Any, row: Row, settings: RowSettings) -> list[int]:
    if row.response is None:
        return prompt_ids(tokenizer, row.prompt, row.history, max_source_length=settings.max_source_length)
    return training_example(
        tokenizer,
        row,
        max_source_length=settings.max_source_length,
        max_target_length=settings.max_target_length,
        close_cut_replies=True,  # the end token's inputs count too
    ).input_ids


def _halves(tokenizer: Any, text: str, settings: RowSettings) -> list[int]:
    middle = len(text) // 2
    prompt = prompt_ids(tokenizer, text[:middle], max_source_length=settings.max_source_length)
    return prompt + reply_ids(tokenizer, text[middle:], max_target_length=settings.max_target_length)


def _lines(path: Path) -> list[str]:
    if not is_regular(path):
        raise UserError(f"--calibration_file {path}: no such file (working directory {working_directory()})")
    texts = [line.strip() for line in read_row_text(path).splitlines()]
    texts = [text for text in texts if len(text) > 1 and not is_blank(text)]
    if not texts:
        raise UserError(f"--calibration_file {path} holds no texts; write one a line")
    return texts


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many items, evenly over all of them (files are often sorted)."""
    if count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
