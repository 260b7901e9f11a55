"""The one guarded way to read a file: whatever Python or a library raises on the way becomes one clear error.

A file may be missing, unreadable, cut short, of another kind, or made to harm: a pipe that never answers, terabytes that
are not there, nested deeper than Python recurses, with numbers longer than Python converts, with one name twice. Every
reader of the package goes through :func:`guarded`, every file is opened by :func:`open_regular`, and every JSON text goes
through :func:`parse_json`.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ptuning.core.errors import UserError

MAX_SMALL_FILE = 16 * 2**20
"""Bytes that a file of settings, sizes or names may have; the published ones have 40 kB at most."""

MAX_LINE = 64 * 2**20
"""Bytes that one line of a file of answers or log entries may have."""

MAX_DEPTH = 100
"""How deep lists and objects of a JSON or YAML text may lie in each other. Python's own limit depends on where it is asked,
and what was just read could still be too deep to be copied or shown."""

_MAX_REASON = 200  # characters of a library's message, or of a name in a file, that are shown
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# --- words


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` resolved; one of a user whom the system does not know stays as it is."""
    return Path(os.path.expanduser(os.fspath(path)))


def shortened(text: object, limit: int = _MAX_REASON) -> str:
    """A text from a file or a library for a message: one line, of so many characters at most."""
    try:
        line = " ".join(str(text).split())
    except RecursionError:
        return "…"
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def listed(names: Any, limit: int = 8) -> str:
    """Names from a file for a message: the first ones, each shortened, and how many more there are."""
    names = list(names)
    shown = ", ".join(shortened(name, 80) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def why_unreadable(error: Exception, kind: str = "file") -> str:
    """What an exception of a reader means, in words for a user."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, RecursionError):
        return f"not a readable {kind} (nested too deeply)"
    if isinstance(error, MemoryError):
        return f"not a readable {kind} (it asks for more memory than there is)"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text ({error.reason} at byte {error.start})"
    lines = str(error).splitlines()
    return f"not a readable {kind} ({shortened(lines[0] if lines else type(error).__name__)})"


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], where: Path | str) -> None:
    """Refuse settings of the wrong type, before something trips over them far from their file.

    Args:
        values: by name; a null stands for a setting that is not there.
        kinds: the types that are allowed for a name. A truth value is no number.
        where: the file.

    Raises:
        UserError: with file, name, value and what is allowed.
    """
    for name, allowed in kinds.items():
        value = values.get(name)
        fits = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
        if value is not None and not fits:
            kinds_text = " or ".join(_KIND_WORDS.get(kind, kind.__name__) for kind in allowed)
            raise UserError(f"{where} has {name} {shortened(repr(value), 60)}; allowed is {kinds_text}")


_KIND_WORDS = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip


# --- files


@contextmanager
def guarded(path: Path | str, kind: str = "file", remedy: str = "download it again") -> Iterator[None]:
    """Turn whatever the block raises while it reads ``path`` into one :class:`UserError` that names the file.

    Our own errors pass through unchanged, as do interrupts. Nothing else does: a library may raise anything for a
    damaged or hostile file.

    Args:
        path: the file, for the message.
        kind: what it should be: ``safetensors file``, ``JSON file``.
        remedy: what the user can do about it.

    Raises:
        UserError: always in place of another exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {why_unreadable(error, kind)}; {remedy}") from error


def is_regular(path: Path | str) -> bool:
    """Whether there is a file to be read under this name; False where there is nothing.

    Raises:
        UserError: something else has the name: a folder, a pipe, a device, a link to nothing.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise UserError(f"{path}: a link to a file that is not there; put the file in its place") from None
        return False
    except ValueError:  # a name that no file can have
        return False
    except OSError as error:
        if isinstance(error, NotADirectoryError):
            return False
        raise UserError(f"{path}: {why_unreadable(error)}; check its name and its permissions") from None
    _refuse_other_kinds(path, mode)
    return True


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading bytes; never a pipe or a device, which may not answer or never end.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes. O_BINARY is needed on Windows only.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if os.path.isdir(path):  # Windows cannot open one, and says that permission is missing
        _refuse_other_kinds(path, stat.S_IFDIR)
    descriptor = os.open(path, flags)
    try:
        _refuse_other_kinds(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_other_kinds(path: Path | str, mode: int) -> None:
    for is_kind, what in _KINDS:
        if is_kind(mode):
            raise UserError(f"{path}: this is {what}, not a file; name a file")


def read_bytes(path: Path | str, max_bytes: int = MAX_SMALL_FILE) -> bytes:
    """The bytes of a regular file.

    Raises:
        UserError: no regular file, or longer than ``max_bytes``.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes:
            data = file.read(max_bytes + 1)
            size = max(size, len(data))
    if size > max_bytes:
        raise UserError(f"{path}: {size} bytes; a file of this kind has {max_bytes} at most, so this is another one")
    return data


def read_text(path: Path | str, max_bytes: int = MAX_SMALL_FILE) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: see :func:`read_bytes`.
        OSError, UnicodeDecodeError: it cannot be read, it is no UTF-8.
    """
    return read_bytes(path, max_bytes).decode("utf-8-sig")


def read_lines(file: BinaryIO, where: Path | str, max_bytes: int = MAX_LINE) -> Iterator[bytes]:
    """The lines of an open file, each with its end.

    Raises:
        UserError: a line is longer than ``max_bytes``.
        OSError: the file cannot be read.
    """
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise UserError(f"{where}:{number}: a line of more than {max_bytes} bytes, so this is a file of another kind")
        yield line


# --- JSON


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """The value of a JSON text, with every way to fail as a ValueError.

    Args:
        text: UTF-8, where it is bytes.
        strict: refuse ``NaN`` and ``Infinity``, which Python writes and reads although JSON does not have them.

    Raises:
        ValueError: no JSON (then a :class:`json.JSONDecodeError` with its position), nested deeper than
            :data:`MAX_DEPTH`, a number with too many digits, or an object with one name twice, of which Python would
            silently keep the last.
    """
    constant = _no_constant if strict else None
    value, _ = _decoded(lambda: (json.loads(text, object_pairs_hook=_object, parse_constant=constant), 0))
    opened = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if opened > MAX_DEPTH:
        _refuse_depth(value)
    return value


def parse_json_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON value that begins at ``position`` of a text, and where it ends; errors as for :func:`parse_json`."""
    value, end = _decoded(lambda: _DECODER.raw_decode(text, position))
    if isinstance(value, dict | list):
        _refuse_depth(value)
    return value, end


def _decoded(decode: Any) -> tuple[Any, int]:
    try:
        return decode()  # type: ignore[no-any-return]
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (_TwiceError, json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:  # Python's own message tells how to lift its limit
        raise ValueError("a number with too many digits" if "digits" in str(error) else shortened(error)) from None


class _TwiceError(ValueError):
    """One name stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _TwiceError(f"the name {shortened(repr(twice), 80)} stands twice in one object")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"JSON has no {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _refuse_depth(value: Any) -> None:
    """Refuse what is nested deeper than :data:`MAX_DEPTH`, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def read_json(path: Path | str, remedy: str = "download it again", max_bytes: int = MAX_SMALL_FILE) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: no such file, unreadable, too long, not UTF-8, no JSON (with line and column), or no object.
    """
    with guarded(path, "JSON file", remedy):
        try:
            value = parse_json(read_text(path, max_bytes))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}; an object is needed; {remedy}")
    return value
