"""The reports of training and evaluation folders below one root, for the evaluation tab."""

from __future__ import annotations

import contextlib
import html
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ptuning.core.errors import UserError

REPORT_FILE = "report.html"
MAX_REPORTS, MAX_DEPTH = 200, 4
MAX_BYTES = 20_000_000


def reports_below(root: Path) -> list[str]:
    """Folders with a report, as paths from the root, the newest first; "." is the root itself."""
    found = sorted(_folders_with_reports(root), reverse=True)
    return [name for _, name in found[:MAX_REPORTS]]


def _folders_with_reports(root: Path) -> Iterator[tuple[float, str]]:
    for folder, inside, files in os.walk(root):  # links are not followed, and a folder that cannot be read is empty
        place = Path(folder).relative_to(root)
        deep = len(place.parts) >= MAX_DEPTH
        inside[:] = [] if deep else [name for name in inside if not name.startswith((".", "checkpoint-"))]
        if REPORT_FILE in files and (path := _inside(root, Path(folder))) is not None:
            with contextlib.suppress(OSError, UnicodeEncodeError):
                name = place.as_posix()
                name.encode()  # a name that is no text could not be sent
                yield path.stat().st_mtime, name


def read_report(root: Path, folder: str) -> str:
    """The page of a folder below the root.

    Raises:
        UserError: the folder lies elsewhere or nowhere, or has no report. All read the same, so that nobody learns what
            lies elsewhere.
    """
    path = _inside(root, root / folder.strip())
    page = None if path is None else _bytes_of(path)
    # Looked at once more: whoever may write below the root might have put a link there meanwhile.
    if page is None or _inside(root, root / folder.strip()) != path:
        raise UserError(f"there is no {REPORT_FILE} in {folder[:200]!r} below {root}")
    if len(page) > MAX_BYTES:
        raise UserError(f"the report in {folder[:200]!r} is larger than {MAX_BYTES} bytes: open the file itself")
    return page.decode(errors="replace")


def _inside(root: Path, folder: Path) -> Path | None:
    """The report of a folder, all links followed; None where that leads out of the root, or nowhere."""
    try:
        path = (folder / REPORT_FILE).resolve(strict=True)
        return path if path.is_relative_to(root.resolve()) and path.name == REPORT_FILE else None
    except (OSError, ValueError, RuntimeError):
        return None


def _bytes_of(path: Path) -> bytes | None:
    """What a file holds, one byte more than may be shown at most; None where it is none. No link is followed any more, and
    nothing is waited for."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(MAX_BYTES + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except OSError:
        return None


def framed(page: str, title: str) -> str:
    """The page in a frame of its own, in which nothing runs and from which nothing reaches the page around it."""
    return f'<iframe class="report" title="{html.escape(title)}" sandbox="" srcdoc="{html.escape(page)}"></iframe>'
