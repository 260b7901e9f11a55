"""Rows in tables: CSV with the usual separators, and parquet, as (place, dictionary)."""

import csv
import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptuning.core.errors import UserError
from ptuning.core.reading import guarded, listed, shortened

logger = logging.getLogger(__name__)

Record = tuple[str, dict[str, Any]]  # where it stands (file:line), column name -> value
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_EXCEL_HINT = re.compile(r"sep=(.)\r?\n")  # a first line that names the separator
_BATCH = 8192  # rows of a parquet file that are unpacked at a time
# A parquet file of text is unpacked to 3 to 20 times its size. One that grows far beyond is made to fill memory.
_MAX_UNPACKED, _ALWAYS_ALLOWED = 200, 2**30  # characters to a byte of the file, and beside that
_MAX_ROWS_A_BYTE, _ALWAYS_ROWS = 10, 10**6


# --- CSV


def read_csv(path: Path, text: str) -> Iterator[Record]:
    """Rows of a table in text with a header line; every value is a text.

    The fields are separated by commas, or by what separates them in the header: semicolons, tabs or bars.
    """
    hint = _EXCEL_HINT.match(text)
    lines = io.StringIO(text, newline="")
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit is 128 KiB a field
    reader: Any = None
    try:
        if hint:
            lines.readline()
        separator = hint[1] if hint else _separator(text, path.suffix.lower() == ".tsv")
        if separator != ",":
            logger.info("%s: fields separated by %s", path, _SEPARATORS.get(separator, repr(separator)))
        reader = csv.reader(lines, delimiter=separator, strict=True)
        yield from _csv_rows(path, reader, 1 if hint else 0, separator)
    except UserError:
        raise
    except (csv.Error, TypeError, ValueError) as error:  # the last two: a sign that cannot separate
        line = reader.line_num + bool(hint) if reader else 1
        raise UserError(
            f"{path}:{line}: not valid CSV ({shortened(error)}); a double quote inside a quoted text is written twice"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path, reader: Any, skipped: int, separator: str) -> Iterator[Record]:
    header = [name.strip() for name in next((row for row in reader if row), [])]
    refuse_twice(header, f"{path}:{reader.line_num + skipped}")
    start = reader.line_num + 1
    for values in reader:
        line, start = start, reader.line_num + 1
        if not values:
            continue
        if len(values) != len(header):
            raise UserError(
                f"{path}:{line + skipped}: {len(values)} fields, but the header names {len(header)} ({listed(header)}); "
                f'put texts with {_SEPARATORS.get(separator, "separators")} or line breaks in double quotes ("…")'
            )
        yield f"{path}:{line + skipped}", dict(zip(header, values, strict=True))


def _separator(text: str, tabs_first: bool) -> str:
    """The separator that cuts the header into several names, and the row after it into as many; a comma where none does."""
    possible = []
    for separator in sorted(_SEPARATORS, key=lambda sign: sign != "\t") if tabs_first else _SEPARATORS:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            header, after = (next((row for row in rows if row), []) for _ in range(2))
        except csv.Error:
            continue
        if len(header) > 1 and len(after) in (0, len(header)):
            return separator
        if len(header) > 1:
            possible.append(separator)
    return next(iter(possible), ",")


def refuse_twice(names: Sequence[str], place: str) -> None:
    """Refuse a table with two columns of one name: a row can keep only one of them.

    Raises:
        UserError: with the name.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{place}: the header names column {shortened(repr(twice[0]), 80)} twice; give every column its own name"
        )


# --- parquet


def read_parquet(path: Path, encoding: str | None = None) -> Iterator[Record]:
    """Rows of a parquet file; bytes that are UTF-8, or else of ``encoding``, are texts.

    A text that stands in many rows is kept once: a kilobyte of parquet can stand for gigabytes.
    """
    number = unpacked = 0
    with guarded(path, "parquet file", "write it again or download it again"):
        import pyarrow.parquet

        size = path.stat().st_size
        with pyarrow.parquet.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        refuse_twice(names, str(path))
        if rows > _ALWAYS_ROWS + _MAX_ROWS_A_BYTE * size:
            raise UserError(f"{path}: claims {rows} rows in {size} bytes; no file of rows is packed so tightly")
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                columns = [_values(column, encoding) for column in batch.columns]
                unpacked += sum(len(value) for column in columns for value in column if isinstance(value, str))
                if unpacked > _ALWAYS_ALLOWED + _MAX_UNPACKED * size:
                    raise UserError(f"{path}: stands for more than {unpacked} characters in {size} bytes; take another file")
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f"{path}:row {number}", dict(zip(names, values, strict=True))


def _is_text(kind: Any) -> bool:
    """Whether a column's type is text or bytes, each on its own."""
    from pyarrow import types

    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))


def _values(column: Any, encoding: str | None) -> list[Any]:
    """The values of a column; equal ones of a dictionary are one object."""
    from pyarrow import DictionaryArray

    if not isinstance(column, DictionaryArray):
        return [_text_of(value, encoding) for value in column.to_pylist()]
    used = column.indices.drop_null().unique()
    texts = {index: _text_of(value, encoding) for index, value in _pairs(used, column.dictionary.take(used))}
    return [None if index is None else texts[index] for index in column.indices.to_pylist()]


def _pairs(keys: Any, values: Any) -> Iterator[tuple[Any, Any]]:
    return zip(keys.to_pylist(), values.to_pylist(), strict=True)


def _text_of(value: Any, encoding: str | None) -> Any:
    """A value, or the text that bytes stand for where they do."""
    for name in ("utf-8", encoding) if isinstance(value, bytes) else ():
        with suppress(UnicodeError):
            return value if name is None else value.decode(name)
    return value
