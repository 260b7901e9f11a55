"""How many rows each file of a run had, how many were used, and why others were not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptuning.core.errors import UserError
from ptuning.core.reading import is_regular, read_json

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

logger = logging.getLogger(__name__)

CONTENT_FILE = "report.json"
_MAX_CONTENT = 256 * 2**20  # bytes of an earlier report's values


def row_counts(arguments: Arguments | None, data: Mapping[str, Sequence[Any]], folder: Path) -> list[dict[str, Any]]:
    """Counts by what the rows are for; those of an earlier report in the folder stay for rows that are not given here."""
    counts: dict[str, dict[str, Any]] = {}
    try:
        if is_regular(folder / CONTENT_FILE):
            earlier = read_json(folder / CONTENT_FILE, max_bytes=_MAX_CONTENT).get("data")
            counts = {entry["name"]: entry for entry in earlier or () if _is_count(entry)}
    except UserError as error:
        logger.warning("%s; its counts of rows are left out", error)
    flags = {"training": "train_file", "validation": "validation_file", "test": "test_file", "general": "general_file"}
    for name, rows in data.items():
        if rows:
            file = getattr(arguments.data, flags[name], None) if arguments is not None and name in flags else None
            dropped = dict(getattr(rows, "dropped", {}))
            total = max(int(getattr(rows, "total", 0)), len(rows))
            counts[name] = {"name": name, "file": file, "rows": total, "used": len(rows), "dropped": dropped}
    order = [*flags, *(name for name in counts if name not in flags)]
    return [counts[name] for name in order if name in counts]


def _is_count(entry: Any) -> bool:
    """Whether an entry of an earlier report is one that both pages can show."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and all(isinstance(entry.get(name), int) for name in ("rows", "used"))
        and isinstance(entry.get("file"), str | None)
        and isinstance(entry.get("dropped"), dict)
    )
