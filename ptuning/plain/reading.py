"""The one guarded way to read a file: whatever Python or a library raises on the way becomes one clear error.

A file may be missing, unreadable, cut short, of another kind, or made to harm: nested deeper than Python recurses, with
numbers longer than Python converts, with one name twice. Every reader of the package goes through :func:`guarded`, and
every JSON text through :func:`parse_json`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptuning.plain.errors import UserError

_MAX_REASON = 200  # characters of a library's message that are shown


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
    reason = (lines[0] if lines else type(error).__name__)[:_MAX_REASON]
    return f"not a readable {kind} ({reason})"


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """The value of a JSON text, with every way to fail as a ValueError.

    Args:
        text: UTF-8, where it is bytes.
        strict: refuse ``NaN`` and ``Infinity``, which Python writes and reads although JSON does not have them.

    Raises:
        ValueError: no JSON (then a :class:`json.JSONDecodeError` with its position), nested too deeply, a number with
            too many digits, or an object with one name twice, of which Python would silently keep the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant if strict else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"JSON has no {name}")


def read_json(path: Path | str, remedy: str = "download it again") -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: no such file, unreadable, not UTF-8, no JSON (with line and column), or no object.
    """
    path = Path(path)
    with guarded(path, "JSON file", remedy):
        try:
            value = parse_json(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}; an object is needed; {remedy}")
    return value
