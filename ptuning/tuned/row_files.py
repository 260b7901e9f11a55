"""The file formats that rows come in: JSON (lines, array, pretty-printed), CSV and parquet, as (place, dictionary)."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptuning.plain.errors import UserError
from ptuning.plain.paths import working_directory
from ptuning.tuned.text_encoding import decode_text

Record = tuple[str, dict[str, Any]]  # where it stands ("file:line"), column name -> value
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
    """The records of a .json, .jsonl, .csv or .parquet file, one by one, with the place of each.

    ``encoding``: of a text file (None: UTF-8). Raises :class:`UserError` for a file that is missing, unreadable, empty,
    of another kind, badly encoded or broken.
    """
    readers = {".json": _read_json, ".jsonl": _read_json, ".csv": _read_csv}
    kinds = ", ".join((*readers, ".parquet"))
    if not str(path) or not path.exists():
        raise UserError(f"file not found: {path} (working directory {working_directory()}); check the path")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give one file in it ({kinds})")
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if suffix != ".parquet" and suffix not in readers:
            raise UserError(f"{path}: rows are read from {kinds} files, not {path.suffix or 'a bare name'}")
        if not head.strip(b" \t\r\n\xef\xbb\xbf"):
            raise UserError(f"{path}: empty file ({path.stat().st_size} bytes); give a file with rows")
        for start, what in _OTHER_FILES.items():
            if head.lstrip().lower().startswith(start.lower()):
                raise UserError(f"{path}: this is {what}")
        if suffix == ".parquet":
            return _read_parquet(path)
        if head.startswith(_PARQUET):
            raise UserError(f"{path}: this is a parquet file; give it a name that ends in .parquet")
        return readers[suffix](path, decode_text(path, path.read_bytes(), encoding))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None


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
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_blanks(text, 0)
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        line_end = text.find("\n", position)
        row = text[position : len(text) if line_end < 0 else line_end]
        try:
            value, end = json.loads(row), position + len(row)
        except (ValueError, RecursionError) as row_error:
            try:
                value, end = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                # A row that was meant to be one line is judged alone: read on, the error would show up further down.
                if row.rstrip().endswith("}") or _starts_object(text, line_end):
                    raise _json_error(path, text, row_error, position) from None
                raise _json_error(path, text, error) from None
        yield position, line, value
        position = _skip_blanks(text, end)


def _array_items(path: Path, text: str) -> Iterator[tuple[int, int, Any]]:
    """(position, line, value) of every item of the one array that ``text`` holds."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_blanks(text, text.index("[") + 1)
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _json_error(path, text, error) from None
        yield position, line, value
        end = _skip_blanks(text, end)
        mark = text[end : end + 1]
        if mark not in ("]", ","):
            raise _json_error(path, text, json.JSONDecodeError("Expecting ',' or ']'", text, end))
        closed = mark == "]"
        position = _skip_blanks(text, end + 1) if mark == "," else end
    after = _skip_blanks(text, position + 1)
    if after < len(text):
        raise _json_error(path, text, json.JSONDecodeError("Extra data after the array", text, after))


def _json_error(path: Path, text: str, error: Exception, offset: int = 0) -> UserError:
    """What is wrong where, from the decoder's error about ``text`` from ``offset`` on."""
    if not isinstance(error, json.JSONDecodeError):
        return UserError(f"{path}: cannot be read as JSON ({error}); correct the file")
    position = min(error.pos + offset, len(text))
    line = text.count("\n", 0, position) + 1
    found = text[position : position + 1]
    if not found:
        return UserError(
            f"{path}:{line}:{_column(text, position)}: unexpected end of file ({error.msg}): the last row is not whole; was "
            "the file cut off while it was copied or downloaded?"
        )
    if error.msg.startswith("Unterminated string"):
        last = "\n" not in text[position:].rstrip()
        return UserError(
            f"{path}:{line}:{_column(text, position)}: the text that begins here has no closing quote; correct this row"
            + (" (unexpected end of file: was it cut off while it was copied or downloaded?)" if last else "")
        )
    unexpected = "unexpected end of line" if found in "\r\n" else None
    return UserError(
        f"{path}:{line}:{_column(text, position)}: {unexpected or f'unexpected {found}'} ({error.msg}); correct this "
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


# --- CSV


def _read_csv(path: Path, text: str) -> Iterator[Record]:
    """Rows of a comma-separated file with a header line; every value is a text."""
    lines = io.StringIO(text, newline="")
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit is 128 KiB a field
    try:
        reader = csv.reader(lines, strict=True)
        header = next(reader, [])
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise UserError(f"{path}:1: the header names column {twice[0]!r} twice; give every column its own name")
        start = reader.line_num + 1
        for values in reader:
            line, start = start, reader.line_num + 1
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{path}:{line}: {len(values)} fields, but the header names {len(header)} ({', '.join(header)}); "
                    'put texts with commas or line breaks in double quotes ("…")'
                )
            yield f"{path}:{line}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); a double quote inside a quoted text is written twice"
        ) from None
    finally:
        csv.field_size_limit(limit)


# --- parquet


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}); write it again or download it again") from None
