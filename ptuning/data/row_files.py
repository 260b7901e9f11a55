"""The file formats that rows come in: JSON (lines, array, pretty-printed), CSV and parquet, as (place, dictionary)."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptuning.core.characters import check_encoding
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import guarded, is_regular, open_regular, parse_json, parse_json_at
from ptuning.data.table_files import Record, read_csv, read_parquet
from ptuning.data.text_encoding import read_row_text

_BLANKS = " \t\r\n"
# What else people hand over in the belief that it holds rows, by its first bytes.
_OTHER_FILES = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the data; run `git lfs pull` or download it again",
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack it, or save the sheet as .csv (UTF-8)",
    b"\x1f\x8b": "gzip-compressed; unpack it first (gunzip)",
    b"<!DOCTYPE": "a web page, not the data; download the raw file",
    b"<html": "a web page, not the data; download the raw file",
}
_PARQUET = b"PAR1"


def read_records(path: Path, encoding: str | None = None) -> Iterator[Record]:
    """The records of a .json, .jsonl, .csv, .tsv or .parquet file, one by one, with the place of each.

    ``encoding``: of a text file (None: UTF-8). Raises :class:`UserError` for a file that is missing, unreadable, empty,
    of another kind, badly encoded or broken.
    """
    readers = {".json": _read_json, ".jsonl": _read_json, ".csv": read_csv, ".tsv": read_csv}
    kinds = ", ".join((*readers, ".parquet"))
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give one file in it ({kinds})")
    if not is_regular(path):
        raise UserError(f"file not found: {path} (working directory {working_directory()}); check the path")
    suffix = path.suffix.lower()
    with guarded(path, "file of rows", "check its permissions and the disk"):
        with open_regular(path) as file:
            head = file.read(4096)
        if suffix != ".parquet" and suffix not in readers:
            raise UserError(f"{path}: rows are read from {kinds} files, not {path.suffix or 'a bare name'}")
        if not head.strip(b" \t\r\n\xef\xbb\xbf"):
            raise UserError(f"{path}: empty file ({path.stat().st_size} bytes); give a file with rows")
        for start, what in _OTHER_FILES.items():
            if head.lstrip().lower().startswith(start.lower()):
                raise UserError(f"{path}: this is {what}")
        if suffix == ".parquet":
            return read_parquet(path, encoding and check_encoding(encoding))
        if head.startswith(_PARQUET):
            raise UserError(f"{path}: this is a parquet file; give it a name that ends in .parquet")
        return readers[suffix](path, read_row_text(path, encoding))


# --- JSON


def _read_json(path: Path, text: str) -> Iterator[Record]:
    is_array = text.lstrip(_BLANKS).startswith("[")
    for position, line, value in _array_items(path, text) if is_array else _single_values(path, text):
        if not isinstance(value, dict):
            kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or truth value")
            raise UserError(
                f"{path}:{line}:{_column(text, position)}: a row must be an object like {{\"content\": \"…\"}}, "
                f"but this is {kind}; one object a line, or one array of objects, is allowed"
            )
        yield f"{path}:{line}", value


def _single_values(path: Path, text: str) -> Iterator[tuple[int, int, Any]]:
    """(position, line, value) of JSON values one after the other: usually one a line, or written over several."""
    line, counted = 1, 0
    position = _skip_blanks(text, 0)
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        line_end = text.find("\n", position)
        row = text[position : len(text) if line_end < 0 else line_end]
        try:
            value, end = parse_json(row), position + len(row)
        except ValueError as row_error:
            try:
                value, end = parse_json_at(text, position)
            except ValueError as error:
                # A row that was meant to be one line is judged alone: read on, the error would show up further down.
                if row.rstrip().endswith("}") or _starts_object(text, line_end):
                    raise _json_error(path, text, row_error, line, position) from None
                raise _json_error(path, text, error, line) from None
        yield position, line, value
        position = _skip_blanks(text, end)


def _array_items(path: Path, text: str) -> Iterator[tuple[int, int, Any]]:
    """(position, line, value) of every item of the one array that ``text`` holds."""
    line, counted = 1, 0
    position = _skip_blanks(text, text.index("[") + 1)
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = parse_json_at(text, position)
        except ValueError as error:
            raise _json_error(path, text, error, line) from None
        yield position, line, value
        end = _skip_blanks(text, end)
        mark = text[end : end + 1]
        if mark not in ("]", ","):
            raise _json_error(path, text, json.JSONDecodeError("Expecting ',' or ']'", text, end), line)
        closed = mark == "]"
        position = _skip_blanks(text, end + 1) if mark == "," else end
    after = _skip_blanks(text, position + 1)
    if after < len(text):
        raise _json_error(path, text, json.JSONDecodeError("Extra data after the array", text, after), line)


def _json_error(path: Path, text: str, error: ValueError, row: int, offset: int = 0) -> UserError:
    """What is wrong where, from the decoder's error about ``text`` from ``offset`` on, in the row that begins in a line."""
    if not isinstance(error, json.JSONDecodeError):
        return UserError(f"{path}:{row}: cannot be read as JSON ({error}); correct this row")
    position = min(error.pos + offset, len(text))
    line = text.count("\n", 0, position) + 1
    character = text[position : position + 1]
    if not character:
        return UserError(
            f"{path}:{line}:{_column(text, position)}: unexpected end of file ({error.msg}): the last row is not whole; was "
            "the file truncated while it was copied or downloaded?"
        )
    if error.msg.startswith("Unterminated string"):
        last = "\n" not in text[position:].rstrip()
        return UserError(
            f"{path}:{line}:{_column(text, position)}: the text that begins here has no closing quote; correct this row"
            + (" (unexpected end of file: was it truncated while it was copied or downloaded?)" if last else "")
        )
    unexpected = "unexpected end of line" if character in "\r\n" else None
    return UserError(
        f"{path}:{line}:{_column(text, position)}: {unexpected or f'unexpected {character}'} ({error.msg}); correct this "
        "row (quotes inside a text are written \\\", line breaks \\n)"
    )


def _starts_object(text: str, line_end: int) -> bool:
    """Whether the line after ``line_end`` begins another object."""
    return line_end >= 0 and text[_skip_blanks(text, line_end) :][:1] == "{"


def _column(text: str, position: int) -> int:
    return position - text.rfind("\n", 0, position)


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANKS:
        position += 1
    return position
