"""Everything that a command prints goes through here: foreign text can neither control the terminal nor end the command.

Names of files, columns and tensors, rows, answers of a model and messages of libraries may hold anything. A terminal would
obey control characters in them (ESC, U+009B), show text in another order (bidirectional overrides), and a newline could fake
a line of ours. So such characters are printed as escapes, ``\\x1b``; progress bars and the line editor have to move the
cursor and write by themselves. A character that the output's encoding lacks is escaped in the same way, by the streams that
:func:`prepare` sets up, instead of ending the command.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import io
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from pathlib import PurePath
from types import TracebackType
from typing import Any, TextIO

# Control characters except tab and newline, U+2028 and U+2029, bidirectional marks, surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# ASCII forms of characters in our own texts that small encodings lack.
_IN_ASCII = {"»": ">>", "«": "<<", "⏎": "|", "…": "...", "–": "-", "—": "-", "×": "x", "≈": "~"}
_ERROR_HANDLER = "ptuning-shown"  # name under which the codec error handler is registered
_GREEN, _PLAIN = "\033[32m", "\033[0m"
_STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class Green(str):
    """A part of a line that is printed in green where standard output is a terminal with colours."""

    __slots__ = ()


def shown(text: str) -> str:
    """Text of one or more lines with unsafe characters escaped."""
    return _UNSAFE.sub(_escape, text)


def inline(text: object) -> str:
    """The same for a part of one line: newlines are escaped, too."""
    return shown(str(text)).replace("\n", "\\n")


def print_line(*parts: object, end: str = "\n", flush: bool = False) -> None:
    """Print one line, made of these parts, to standard output.

    Raises:
        OSError: it cannot be written; the error's ``filename`` names the stream.
    """
    _write(sys.stdout, "".join(_part(part) for part in parts) + end, flush=flush)


def print_text(text: str, *, end: str = "\n", flush: bool = False) -> None:
    """Print text that may have several lines to standard output; raises as :func:`print_line`."""
    _write(sys.stdout, shown(text) + end, flush=flush)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON to standard output; raises as :func:`print_line`.

    Unsafe and unencodable characters are escaped as in JSON, so that a parser gets the exact value.
    """
    line = json.dumps(value, ensure_ascii=False)
    try:
        line = _UNSAFE.sub(lambda character: f"\\u{ord(character[0]):04x}", line)
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value).replace("\x7f", "\\u007f")
    _write(sys.stdout, line + "\n")


def print_answer(piece: str) -> None:
    """Print a piece of a model's answer to standard output and flush it; raises as :func:`print_line`.

    A file or pipe gets exactly what the model wrote, a terminal gets unsafe characters escaped.
    """
    _write(sys.stdout, shown(piece) if sys.stdout.isatty() else piece, flush=True)


def print_error(text: object) -> None:
    """Print one line to standard error; errors of that stream are ignored."""
    print_error_text(inline(text))


def print_error_text(text: str) -> None:
    """Print text that may have several lines to standard error, like :func:`print_error`."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        _write(sys.stderr, shown(text) + "\n", flush=True)


def _part(part: object) -> str:
    coloured = isinstance(part, Green) and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = shown(part) if isinstance(part, Green) else inline(part)
    return f"{_GREEN}{text}{_PLAIN}" if coloured else text


def _write(stream: TextIO, text: str, *, flush: bool = False) -> None:
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def _escape(character: re.Match[str]) -> str:
    code = ord(character[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# ---- set up once per process ------------------------------------------------------------------------------------------


def prepare(*, whole_process: bool) -> None:
    """Make the standard streams and the log safe to write to.

    Args:
        whole_process: the process belongs to this command alone. Then the records of all loggers, warnings and tracebacks of
            uncaught errors are escaped too, and closed streams are replaced.
    """
    codecs.register_error(_ERROR_HANDLER, _replace_unencodable)
    if whole_process:
        _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERROR_HANDLER)
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ptuning").setLevel(logging.INFO)
    if whole_process:
        _escape_logs_and_tracebacks()


class SafeFormatter(logging.Formatter):
    """Formats log records for a terminal: the arguments of a message cannot break its line, tracebacks keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines of a record."""
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_safe_argument, record.args))
        elif record.args:
            record.args = {name: _safe_argument(value) for name, value in record.args.items()}
        return shown(super().format(record))


class _SafeRecord(logging.LogRecord):
    """A record whose message is safe even for the handlers of other libraries."""

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        return shown(super().getMessage())


def _safe_argument(value: Any) -> Any:
    return inline(value) if isinstance(value, str | PurePath | BaseException) else value


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """The codec error handler: ASCII forms for the characters of our own texts, escapes for all others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    replaced = (_IN_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode() for char in characters)
    return "".join(replaced), error.end


def _open_closed_streams() -> None:
    """Open standard streams that were closed at the start; otherwise the next opened file would take their place."""
    for number, (name, mode) in enumerate(_STANDARD):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open as long as the process runs


def _escape_logs_and_tracebacks() -> None:
    """Escape the records of all loggers, warnings, and tracebacks of uncaught errors, also in threads."""
    logging.setLogRecordFactory(_SafeRecord)
    format_warning = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: shown(format_warning(*args, **kwargs))

    def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print_error_text("".join(traceback.format_exception(kind, error, trace)).rstrip())

    def thread_excepthook(failure: Any) -> None:
        if failure.exc_type is not SystemExit:
            name = failure.thread.name if failure.thread else "?"
            lines = traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
            print_error_text(f"exception in thread {inline(name)}:\n{''.join(lines)}".rstrip())

    sys.excepthook, threading.excepthook = print_exception, thread_excepthook


def flush() -> None:
    """Write what standard output still buffers; on a full disk this raises, instead of a message at Python's exit.

    Raises:
        OSError: as :func:`print_line`.
    """
    if not sys.stdout.closed:
        _write(sys.stdout, "", flush=True)


def discard_unwritten() -> None:
    """Write what standard output still buffers, or discard it where that fails, so that Python does not try again."""
    with contextlib.suppress(OSError, ValueError):
        with contextlib.suppress(OSError):
            flush()
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
