"""Everything that a command says goes through here: text from outside can neither drive the terminal nor end the command.

Names of files, columns and tensors, rows, answers of a model and the messages of libraries are whatever somebody wrote. A
terminal would obey what they hold (ESC, U+009B), show it in another order (bidirectional overrides) or take a second line
for one of ours. So such characters are shown by their numbers, ``\\x1b``; what legitimately moves the cursor, a progress bar
or the line editor, writes by itself. And a character that the output's encoding lacks is shown in the same way, by streams
that :func:`prepare` set up, instead of ending the command.
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
from typing import Any, TextIO

# Controls but tab and newline, U+2028 and U+2029, the marks that turn the direction of text, halves of characters.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What our own texts have and small encodings have not.
_IN_ASCII = {"»": ">>", "«": "<<", "⏎": "|", "…": "...", "–": "-", "—": "-", "×": "x", "≈": "~"}
_UNENCODABLE = "ptuning-shown"  # name of our way with characters that an encoding lacks
_GREEN, _PLAIN = "\033[32m", "\033[0m"
_STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class Green(str):
    """A part of a line that is green where standard output is a terminal with colours."""

    __slots__ = ()


def shown(text: str) -> str:
    """Text of several lines as it can be shown: what a terminal would obey is there by its number."""
    return _OBEYED.sub(_number, text)


def inline(text: object) -> str:
    """The same for a part of one line: a newline is a number, too."""
    return shown(str(text)).replace("\n", "\\n")


def say(*parts: object, end: str = "\n", flush: bool = False) -> None:
    """Write one line, made of these parts, on standard output.

    Raises:
        OSError: it cannot be written; its ``filename`` says to what.
    """
    _write(sys.stdout, "".join(_part(part) for part in parts) + end, flush=flush)


def say_text(text: str, *, end: str = "\n", flush: bool = False) -> None:
    """Write text that may have several lines on standard output; raises as :func:`say`."""
    _write(sys.stdout, shown(text) + end, flush=flush)


def say_json(value: Any) -> None:
    """Write a value as one line of JSON on standard output; raises as :func:`say`. What cannot be shown or encoded is
    escaped as JSON does it, so that a reader gets the value itself."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line = _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value).replace("\x7f", "\\u007f")
    _write(sys.stdout, line + "\n")


def say_answer(piece: str) -> None:
    """Write a piece of a model's answer on standard output, at once; raises as :func:`say`.

    A file gets what the model wrote, a terminal what can be shown.
    """
    _write(sys.stdout, shown(piece) if sys.stdout.isatty() else piece, flush=True)


def tell(text: object) -> None:
    """Write one line on standard error; that nobody reads it ends nothing."""
    tell_text(inline(text))


def tell_text(text: str) -> None:
    """Write text that may have several lines on standard error, as :func:`tell`."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
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


def _number(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# ---- what is set up once ---------------------------------------------------------------------------------------------


def prepare(*, whole_process: bool) -> None:
    """Make the standard streams and the log safe to write to.

    Args:
        whole_process: the process is this command's alone. Then records of every log, warnings and tracebacks of errors that
            nobody caught are shown by the same rule, and closed streams are replaced.
    """
    codecs.register_error(_UNENCODABLE, _encodable)
    if whole_process:
        _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_UNENCODABLE)
    handler = logging.StreamHandler()
    handler.setFormatter(ShownFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ptuning").setLevel(logging.INFO)
    if whole_process:
        _show_all_by_one_rule()


class ShownFormatter(logging.Formatter):
    """Formats records for a terminal: what was filled into a message stays within its line, tracebacks keep theirs."""

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines of a record."""
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_filled_in, record.args))
        elif record.args:
            record.args = {name: _filled_in(value) for name, value in record.args.items()}
        return shown(super().format(record))


class _ShownRecord(logging.LogRecord):
    """A record whose message is safe for the handlers that libraries bring, too."""

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        return shown(super().getMessage())


def _filled_in(value: Any) -> Any:
    return inline(value) if isinstance(value, str | PurePath | BaseException) else value


def _encodable(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks: in ASCII where we have a sign for them, else by their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(one) or one.encode("ascii", "backslashreplace").decode() for one in characters), error.end


def _open_closed_streams() -> None:
    """Give a process that was started with closed streams open ones, or the next file that is opened would become them."""
    for number, (name, mode) in enumerate(_STANDARD):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # as long as the process


def _show_all_by_one_rule() -> None:
    """Records of every log, warnings, and tracebacks of errors that nobody caught."""
    logging.setLogRecordFactory(_ShownRecord)
    format_warning = warnings.formatwarning
    warnings.formatwarning = lambda *given, **named: shown(format_warning(*given, **named))
    sys.excepthook = lambda kind, error, trace: tell_text("".join(traceback.format_exception(kind, error, trace)).rstrip())

    def of_thread(failed: Any) -> None:
        if failed.exc_type is not SystemExit:
            named = failed.thread.name if failed.thread else "?"
            lines = traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
            tell_text(f"exception in thread {inline(named)}:\n{''.join(lines)}".rstrip())

    threading.excepthook = of_thread


def flush() -> None:
    """Write out what standard output still holds; a full disk is an error here, and not a line at the end of Python.

    Raises:
        OSError: as :func:`say`.
    """
    if not sys.stdout.closed:
        _write(sys.stdout, "", flush=True)


def settle() -> None:
    """Write out what standard output still holds, or drop what cannot be written, so that Python does not try again."""
    with contextlib.suppress(OSError, ValueError):
        with contextlib.suppress(OSError):
            flush()
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
