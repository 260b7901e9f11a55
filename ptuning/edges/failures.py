"""What ends a command, as one line and an exit code.

Errors that come from a user, a file, a disk or an installation are explained. A bug of ours (AttributeError, KeyError, ...)
is not: it keeps its traceback, which a bug report needs.
"""

from __future__ import annotations

import errno
import os
import select
import traceback

from ptuning.core import errors
from ptuning.core.errors import StoppedError, UserError, is_out_of_memory
from ptuning.core.paths import working_directory_is_gone

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_NO_READER = 0, 1, 2, 130, 141

GONE = "the working directory does not exist any more: change to one that does"

# Name of an imported package → the extra of ptuning that installs it.
_EXTRAS = {
    "fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve", "gradio": "web", "cpm_kernels": "cuda",
    "tensorboard": "tensorboard", "sacrebleu": "metrics",
}
_REMEDIES = {
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "make room there, or name another place",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), or name another place",
    errno.EROFS: "name another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line to print and the exit code; an empty line where there is nothing to print, None for a bug."""
    if isinstance(error, StoppedError):
        return " ".join(str(error).split()), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "\ninterrupted", EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError) and _reader_has_gone():
        return "", EXIT_NO_READER
    reason = _reason(error)
    return None if reason is None else (f"error: {' '.join(reason[0].split())}", reason[1])


def _reason(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, UserError):
        return str(error), EXIT_USER_ERROR
    if type(error).__module__ == errors.__name__:  # our own errors are written for the user
        return str(error), EXIT_FAILED
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if isinstance(error, UnicodeEncodeError):
        characters = error.object[error.start : error.end][:20]
        return (
            f"{characters!r} cannot be written as {error.encoding}: half a character, as in the name of a file or folder "
            "that is not UTF-8; rename it"
        ), EXIT_USER_ERROR
    if isinstance(error, RecursionError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"the input is nested too deeply (RecursionError in {frame.filename}:{frame.lineno})", EXIT_FAILED
    if not isinstance(error, OSError) and is_out_of_memory(error):
        lines = str(error).splitlines()
        return f"not enough memory ({lines[0] if lines else type(error).__name__})", EXIT_FAILED
    return (_system_error(error), EXIT_FAILED) if isinstance(error, OSError) else None


def _missing_package(error: ModuleNotFoundError) -> tuple[str, int] | None:
    """The line for a package that is not installed. A missing module of ours, or of an installed package, is a bug."""
    if not error.name or "." in error.name or error.name == "ptuning":
        return None
    extra = _EXTRAS.get(error.name)
    package = f"'ptuning[{extra}]'" if extra else error.name
    return f"the package {error.name} is not installed: pip install {package} (or requirements.txt)", EXIT_USER_ERROR


def _system_error(error: OSError) -> str:
    """An error of the operating system, with the file that it is about."""
    if not error.strerror:  # raised by a library
        return str(error) or type(error).__name__
    filename = error.filename
    if isinstance(filename, bytes | str):
        filename = os.fsdecode(filename)
    if error.errno == errno.ENOENT and not os.path.isabs(str(filename)) and working_directory_is_gone():
        return GONE  # removed while the command ran
    place = "" if filename is None else f"{filename}: "
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{place}{error.strerror}" + (f"; {remedy}" if remedy else "")


def _reader_has_gone() -> bool:
    """Whether the broken pipe is standard output, and not another pipe or connection."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
