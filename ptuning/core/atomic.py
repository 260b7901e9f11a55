"""Files that appear whole or not at all, files that grow by whole lines, and one error for a write that fails."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ptuning.core.errors import OutputError

_TORCH_WRITER = ("inline_container.cc", "PytorchStreamWriter", "Parent directory", "iostream error")
"""What PyTorch's RuntimeError says where its writer in C++ fails; the system's own error is lost by then."""

_ALMOST_FULL = 1 << 16  # bytes: a file system with less free is taken for full


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, flushed to disk and renamed to it when the block ends well, removed otherwise.

    A link that has the name is replaced, not followed. What a process left that was killed while it wrote the same file is
    removed as well.

    Raises:
        OutputError: the file cannot be written; what had the name stays as it was.
    """
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
        if path.parent.is_dir() and not temporary.exists():
            raise FileNotFoundError(errno.ENOENT, "the block has written nothing", str(temporary))
        with writing(path):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what a failed write raises into one :class:`OutputError` that names the file.

    These are the system's OSError, and the errors of PyTorch's and safetensors' own writers, which hide it. Everything
    else passes.

    Args:
        path: the file, or the folder, that the block writes.
    """
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        number = write_error_number(error, Path(path))
        if number is None:
            raise
        raise OutputError(path, number) from error


def write_error_number(error: Exception, path: Path) -> int | None:
    """The system's number of the error that made a write fail; None where the exception is no failed write.

    Args:
        error: what was raised.
        path: what was being written.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    text = str(error)
    if type(error).__name__ == "SafetensorError" and (match := re.search(r"I/O error.*\(os error (\d+)\)", text)):
        return int(match[1])
    if not isinstance(error, RuntimeError) or not any(sign in text for sign in _TORCH_WRITER):
        return None
    if text.startswith("Parent directory"):
        return errno.ENOENT
    return next((number for number in errno.errorcode if text.endswith(f"strerror: {os.strerror(number)}")), _likely(path))


def _likely(path: Path) -> int:
    """Why a write stopped that did not say so: a full disk, a limit on the size of files, or something unknown."""
    place = path if path.is_dir() else path.parent
    if not place.is_dir():
        return errno.ENOENT
    if shutil.disk_usage(place).free < _ALMOST_FULL:
        return errno.ENOSPC
    try:
        import resource
    except ImportError:  # Windows
        return errno.EIO
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if limited else errno.EIO


class LineFile:
    """A file that grows by whole lines: a line that cannot be written whole leaves nothing of itself.

    It is never opened through a link.

    Args:
        path: made where missing.

    Raises:
        OutputError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):  # as far as the system has them
            flags |= getattr(os, name, 0)
        with writing(path):
            self._handle = os.open(path, flags, 0o666)

    def append(self, line: str) -> None:
        """Write a line, with its newline; it is in the operating system's hands when this returns.

        Raises:
            OutputError: it cannot be written, or the file was removed.
        """
        now = os.fstat(self._handle)
        if now.st_nlink == 0:
            raise OutputError(self.path, errno.ENOENT, "what was written to it is lost", "was removed while it was written")
        left = memoryview(line.encode("utf-8"))
        with writing(self.path):
            try:
                while left:
                    left = left[os.write(self._handle, left) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._handle, now.st_size)
                raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def remove_tree(path: Path) -> None:
    """Remove whatever has this name, as far as it can be removed: a folder with all in it, a file, or a link and not what
    it points to."""
    if path.is_symlink() or path.is_file():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Temporary files for ``path`` of processes that are no more."""
    if os.name != "posix":  # elsewhere there is no harmless way to ask for a process
        return
    before, after = f".{path.name}.", ".tmp"
    with suppress(OSError):
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
