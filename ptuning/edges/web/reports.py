"""Reports of training and evaluation runs below one root folder, for the evaluation tab."""

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
    """Folders with a report, as paths relative to the root, newest first; "." is the root itself."""
    reports = sorted(_folders_with_reports(root), reverse=True)
    return [name for _, name in reports[:MAX_REPORTS]]


def _folders_with_reports(root: Path) -> Iterator[tuple[float, str]]:
    """Modification time and relative path of each folder with a report."""
    for folder, subfolders, files in os.walk(root):  # follows no links; a folder that cannot be read counts as empty
        relative = Path(folder).relative_to(root)
        is_deepest = len(relative.parts) >= MAX_DEPTH
        subfolders[:] = [] if is_deepest else [name for name in subfolders if not name.startswith((".", "checkpoint-"))]
        if REPORT_FILE in files and (path := _report_in(root, Path(folder))) is not None:
            with contextlib.suppress(OSError, UnicodeEncodeError):
                name = relative.as_posix()
                name.encode()  # a name that is not valid text could not be sent
                yield path.stat().st_mtime, name


def read_report(root: Path, folder: str) -> str:
    """The HTML of the report in a folder below the root.

    Raises:
        UserError: the folder lies elsewhere, does not exist, or has no report. The message is the same for all three, so
            that it reveals nothing about other folders.
    """
    path = _report_in(root, root / folder.strip())
    page = None if path is None else _read_bytes(path)
    # Checked again after reading: somebody who can write below the root might have put a link there meanwhile.
    if page is None or _report_in(root, root / folder.strip()) != path:
        raise UserError(f"there is no {REPORT_FILE} in {folder[:200]!r} below {root}")
    if len(page) > MAX_BYTES:
        raise UserError(f"the report in {folder[:200]!r} is larger than {MAX_BYTES} bytes: open the file itself")
    return page.decode(errors="replace")


def _report_in(root: Path, folder: Path) -> Path | None:
    """The report of a folder with all links resolved; None where there is none or it lies outside the root."""
    try:
        path = (folder / REPORT_FILE).resolve(strict=True)
        return path if path.is_relative_to(root.resolve()) and path.name == REPORT_FILE else None
    except (OSError, ValueError, RuntimeError):
        return None


def _read_bytes(path: Path) -> bytes | None:
    """At most one byte more of a file than may be shown; None where it is not a regular file. It follows no link, and does
    not wait for pipes."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(MAX_BYTES + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except OSError:
        return None


def framed(page: str, title: str) -> str:
    """A report in a sandboxed frame: no script runs in it, and it cannot reach the page around it."""
    return f'<iframe class="report" title="{html.escape(title)}" sandbox="" srcdoc="{html.escape(page)}"></iframe>'
