"""Folders whose files decide what runs or what is learnt: nobody but this user and root can have put anything there.

The last folder alone says nothing: whoever can write to one above it can put another in its place. So every folder from the
root on is checked, as is the file itself. Where there are no owners (Windows), the system's own folder has to do.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MAX_LINKS = 40  # as Linux follows them


class UntrustedPathError(OSError):
    """A folder or a file that another user could have made or changed; the message names it and says why."""


def cache_root() -> Path:
    """Where the system keeps a user's caches: ``$XDG_CACHE_HOME`` if it is an absolute path, or the usual place.

    Raises:
        OSError: there is no home.
    """
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    if os.path.isabs(cache_home):
        return Path(cache_home)
    return _home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _home() -> Path:
    try:
        home = Path.home()
    except RuntimeError as error:
        raise UntrustedPathError(f"there is no home folder: {error}") from None
    if not home.is_absolute():
        raise UntrustedPathError(f"HOME={home}: no absolute path")
    return home


def private_folder(folder: Path, *, own: int = 0) -> Path:
    """A folder to which nobody else can write, nor to any above it; made where it is missing.

    A folder above may be open to all if it is sticky, as ``/tmp`` is: what belongs to us or to root in there stays.

    Args:
        folder: absolute; links above the last ``own`` names are followed.
        own: how many names at its end nobody but us uses: no links, this user's, and closed to others if they were not.
            0 for a folder that the user named, whose mode is the user's affair.

    Returns:
        the folder, without links.

    Raises:
        OSError: it cannot be made or written to; :class:`UntrustedPathError` where somebody else could have written to it.
    """
    if not hasattr(os, "geteuid"):
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    at = Path(folder.anchor)
    _check(at, at.lstat())
    left, links = _names(folder), 0
    while left:
        ours = len(left) <= own
        below = at / left.pop()
        if below.name == "..":
            at = at.parent
            continue
        try:
            status = below.lstat()
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another process made it
                below.mkdir(mode=0o700)
            status = below.lstat()
        if stat.S_ISLNK(status.st_mode) and not ours:
            _check_owner(below, status)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            target = Path(os.readlink(below))
            at = Path(target.anchor) if target.is_absolute() else at
            left += _names(target)
            continue
        at = below
        _check(at, _closed(at, status) if ours else status)
    _check(at, at.lstat(), sticky=False)
    if not os.access(at, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(at))
    return at


def keep_compiled_code_private(variable: str, name: str) -> None:
    """Have a library keep the code that it compiles, and runs from there, in a private folder.

    torch's compiler would take a folder of a known name in the shared temporary folder, whoever made it. Where there is no
    private folder, one of this process alone has to do.

    Args:
        variable: of the environment, that names the library's folder; a value that the user gave stays.
        name: of the folder among our caches.

    Raises:
        OSError: others could change even what this process puts into a temporary folder.
    """
    if os.environ.get(variable):
        return
    try:
        folder = private_folder(cache_root() / "ptuning" / name, own=2)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="ptuning-")).absolute()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        folder = private_folder(folder, own=1)
        logger.warning("compiled code is not kept, but compiled at every start (%s)", error)
    os.environ[variable] = str(folder)


def check_file(path: Path) -> None:
    """Check that a file of a private folder is a plain file that only its owner, this user or root, can change.

    Raises:
        OSError: there is none; :class:`UntrustedPathError` where it is something else or somebody else's.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedPathError(f"{path}: no regular file")
    if not hasattr(os, "geteuid"):
        return
    _check_owner(path, status)
    if status.st_mode & _OTHERS_WRITE:
        raise UntrustedPathError(f"{path}: other users can write to it (mode {stat.S_IMODE(status.st_mode):04o})")


def _names(path: Path) -> list[str]:
    """The names of a path, the last one first."""
    return [name for name in path.parts if name != path.anchor][::-1]


def _closed(folder: Path, status: os.stat_result) -> os.stat_result:
    """Close one of our own folders to others; files that others put there meanwhile are recognised by their owner."""
    if status.st_uid != os.geteuid():
        raise UntrustedPathError(f"{folder}: belongs to user {status.st_uid}, not to {os.geteuid()}")
    if not stat.S_ISDIR(status.st_mode) or not status.st_mode & 0o077:
        return status
    folder.chmod(0o700)
    return folder.lstat()


def _check(folder: Path, status: os.stat_result, *, sticky: bool = True) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedPathError(f"{folder}: {'a link' if stat.S_ISLNK(status.st_mode) else 'a file'}, not a folder")
    _check_owner(folder, status)
    if status.st_mode & _OTHERS_WRITE and not (sticky and status.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(status.st_mode)
        raise UntrustedPathError(f"{folder}: other users can write to it (mode {mode:04o}; chmod go-w closes it)")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedPathError(f"{path}: belongs to another user ({status.st_uid})")
