"""Rows in tables: CSV with the usual separators, and parquet, as (place, dictionary)."""

import csv
import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ptuning.plain.errors import UserError
from ptuning.plain.reading import guarded, listed, shortened

logger = logging.getLogger(__name__)

Record = tuple[str, dict[str, Any]]  # where it stands (file:line), column name -> value
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_EXCEL_HINT = re.compile(r"sep=(.)\r?\n")  # a first line that names the separator
_BATCH = 1024  # rows of a parquet file that are unpacked at a time
# A parquet file of text is unpacked to 3 to 20 times its size. One that goes on far beyond is made to fill memory.
_MOST_UNPACKED, _ALWAYS_ALLOWED = 200, 2**30


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
    header: list[str] = next(reader, [])
    refuse_twice(header, f"{path}:{1 + skipped}")
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
    """The separator that cuts the header into several names; a comma where none does."""
    header: list[str]
    for separator in sorted(_SEPARATORS, key=lambda sign: sign != "\t") if tabs_first else _SEPARATORS:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        if len(header) > 1:
            return separator
    return ","


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


def read_parquet(path: Path) -> Iterator[Record]:
    """Rows of a parquet file; bytes that are UTF-8 are texts."""
    number = unpacked = 0
    with guarded(path, "parquet file", "write it again or download it again"):
        import pyarrow.parquet

        allowed = _ALWAYS_ALLOWED + _MOST_UNPACKED * path.stat().st_size
        with pyarrow.parquet.ParquetFile(path) as file:
            refuse_twice(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=_BATCH):
                unpacked += batch.nbytes
                if unpacked > allowed:
                    raise UserError(f"{path}: unpacks to more than {unpacked} bytes; no file of rows is packed so tightly")
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", {name: _text_of(value) for name, value in record.items()}


def _text_of(value: Any) -> Any:
    """A value with the text that bytes stand for, where they do."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return value
