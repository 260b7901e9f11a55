"""The reports of training and evaluation folders below one root, for the evaluation tab."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from pathlib import Path

from ptuning.plain.errors import UserError

REPORT_FILE = "report.html"
MOST_REPORTS, DEEPEST = 200, 4
MOST_BYTES = 20_000_000


def reports_below(root: Path) -> list[str]:
    """Folders with a report, as paths from the root, the newest first; "." is the root itself."""
    found = sorted(_folders_with_reports(root), reverse=True)
    return [name for _, name in found[:MOST_REPORTS]]


def _folders_with_reports(root: Path) -> Iterator[tuple[float, str]]:
    for folder, inside, files in os.walk(root):  # links are not followed, and a folder that cannot be read is empty
        place = Path(folder).relative_to(root)
        deep = len(place.parts) >= DEEPEST
        inside[:] = [] if deep else [name for name in inside if not name.startswith((".", "checkpoint-"))]
        if REPORT_FILE in files:
            try:
                yield (Path(folder) / REPORT_FILE).stat().st_mtime, place.as_posix()
            except OSError:
                continue


def read_report(root: Path, folder: str) -> str:
    """The page of a folder below the root.

    Raises:
        UserError: the folder lies elsewhere or nowhere, or has no report. All read the same, so that nobody learns what
            lies elsewhere.
    """
    try:
        path = (root / folder.strip() / REPORT_FILE).resolve()
        fine = path.is_relative_to(root.resolve()) and path.name == REPORT_FILE and path.is_file()
        page = path.read_bytes() if fine and path.stat().st_size <= MOST_BYTES else None
    except (OSError, ValueError, RuntimeError):
        fine = False
    if not fine:
        raise UserError(f"there is no {REPORT_FILE} in {folder!r} below {root}")
    if page is None:
        raise UserError(f"the report in {folder!r} is larger than {MOST_BYTES} bytes: open the file itself")
    return page.decode(errors="replace")


def framed(page: str, title: str) -> str:
    """The page in a frame of its own, in which nothing runs and from which nothing reaches the page around it."""
    return f'<iframe class="report" title="{html.escape(title)}" sandbox="" srcdoc="{html.escape(page)}"></iframe>'
