"""One run at a time writes into an output folder: the claim on it, and a check that it is still there.

The claim is a lock of the operating system on a file in the folder. It ends with the process, however that ends, so that a
file left by a killed run blocks nobody. Child processes do not inherit it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ptuning.core.errors import OutputError, UserError
from ptuning.core.paths import working_directory_is_gone

logger = logging.getLogger(__name__)

LOCK_FILE = ".ptuning.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_held: set[tuple[int, int]] = set()
"""Lock files of this process: closing one a second time would give up the first claim, too."""


class OutputFolder:
    """A folder that this run has claimed.

    Attributes:
        path: absolute.
    """

    def __init__(self, path: Path, lock: Path, handle: int) -> None:
        self.path = path
        self._lock, self._handle = lock, handle
        self._folder: int | None = None
        with suppress(OSError):  # held open, so that a folder made in its place cannot get the same number
            self._folder = os.open(lock.parent, os.O_RDONLY)

    def check(self, so_far: str = "") -> None:
        """Make sure that the folder is still the one that was claimed.

        Args:
            so_far: how far the run has come, for the message.

        Raises:
            OutputError: it was removed, or another one has its name now.
        """
        if _same(self._lock, self._handle) or self._folder is None or _same(self._lock.parent, self._folder):
            return
        raise OutputError(
            self.path,
            errno.ENOENT,
            f"what was saved there is lost{so_far and f' ({so_far})'}, and the run ends here: start it again",
            "this output folder was removed or replaced while the run was writing to it",
        )

    def release(self) -> None:
        """Give up the claim; the lock file goes."""
        with suppress(OSError):
            if _same(self._lock, self._handle):
                self._lock.unlink()
        _held.discard(_identity(os.fstat(self._handle)))
        for handle in (self._handle, self._folder):
            if handle is not None:
                os.close(handle)


@contextmanager
def claimed(folder: str | os.PathLike[str], *, flag: str = "--output_dir", beside: bool = False) -> Iterator[OutputFolder]:
    """Make a folder where it is missing and keep other runs out of it while the block runs.

    A folder that was made here and is empty in the end goes again.

    Args:
        folder: the output folder.
        flag: how the user named it, for messages.
        beside: the folder itself appears later, all at once; the lock lies beside it, and only the folder above is made.

    Raises:
        UserError: it cannot be made or written, or another run is writing there.
        OutputError: the disk is full.
    """
    created: list[tuple[Path, int]] = []
    try:
        try:
            path = Path(os.path.abspath(folder))
            lock = path.with_name(f".{path.name}.lock") if beside else path / LOCK_FILE
            _make(lock.parent, created)
            held = OutputFolder(path, lock, _locked(lock, f"{flag} {folder}"))
        except (OSError, ValueError) as error:
            raise _refusal(error, flag, folder) from None
        try:
            yield held
        finally:
            held.release()
    finally:
        with suppress(OSError):
            for place, number in created:  # the lowest first
                if place.lstat().st_ino == number:  # otherwise another process has created its own there
                    place.rmdir()


def _make(folder: Path, created: list[tuple[Path, int]]) -> None:
    """Make a folder and those above it; ``created`` gets those that were not there, with their inodes."""
    if folder.is_dir():
        return
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"this is a link to {os.readlink(folder)}, which is not there")
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _make(folder.parent, created)
    try:
        folder.mkdir()
    except FileExistsError:  # somebody was faster
        if not folder.is_dir():
            raise
    else:
        created.insert(0, (folder, folder.lstat().st_ino))


def _refusal(error: OSError | ValueError, flag: str, folder: str | os.PathLike[str]) -> Exception:
    """What an error on the way to a claim means, in words for a user."""
    if isinstance(error, UserError) and str(error).startswith(flag):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return OutputError(folder, error.errno)
    if isinstance(error, NotADirectoryError):
        itself = error.filename == os.path.abspath(folder)
        why = "this is a file; name a folder" if itself else f"{error.filename} is a file, and no folder can lie below it"
        return UserError(f"{flag} {folder}: {why}")
    if isinstance(error, FileNotFoundError) and not os.path.isabs(folder) and working_directory_is_gone():
        return UserError(f"{flag} {folder}: the working directory was deleted; change to another one, or give a whole path")
    if isinstance(error, OSError):
        return UserError(f"{flag} {folder}: cannot be written ({error.strerror}); name another folder")
    if isinstance(error, UserError):
        return UserError(f"{flag} {folder}: {error}; name another folder")
    return UserError(f"{flag} {str(folder)!r}: no path ({error}); name another folder")


def _locked(path: Path, named: str) -> int:
    """Open and lock a file; an open handle, which holds the lock.

    Raises:
        UserError: another run has it.
    """
    while True:
        with suppress(OSError):
            if _identity(os.stat(path)) in _held:
                raise UserError(f"{named}: this process is writing there already; name another folder")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o666)
        try:
            _lock(handle, path, named)
        except BaseException:
            os.close(handle)
            raise
        if _same(path, handle):  # else its owner removed it between the two steps: there is a new one, or none
            break
        os.close(handle)
    _held.add(_identity(os.fstat(handle)))
    with suppress(OSError):  # for the message that others get; the claim holds without it
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
    return handle


def _lock(handle: int, path: Path, named: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps a second run out
        return
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            process, _, host = os.read(handle, 300).decode("utf-8", "replace").strip().partition(" ")
            who = f" (process {process} on {host})" if process.isdigit() else ""
            raise UserError(
                f"{named}: another run{who} is writing there; wait until it has ended, or name another folder"
            ) from None
        logger.warning(
            "%s: this file system knows no locks (%s), so nothing keeps a second run out of this folder",
            path.parent, error.strerror,
        )


def _same(path: Path, handle: int) -> bool:
    """Whether a path still names the file or folder that is open."""
    try:
        return _identity(os.stat(path)) == _identity(os.fstat(handle))
    except OSError:
        return False


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino
