"""Files that appear whole or not at all."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, flushed to disk and renamed to it when the block ends well, removed otherwise.

    What a process left that was killed while it wrote the same file is removed as well.
    """
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Temporary files for ``path`` of processes that are no more."""
    if os.name != "posix":  # elsewhere there is no harmless way to ask for a process
        return
    before, after = f".{path.name}.", ".tmp"
    for leftover in path.parent.glob(f"{glob.escape(before)}*{after}"):
        number = leftover.name.removeprefix(before).removesuffix(after)
        if number.isdigit() and not _is_running(int(number)):
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
