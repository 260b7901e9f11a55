"""What the value of any setting may be: the one check of numbers and texts, for every dataclass of settings.

Numbers are finite, whole numbers have at most 64 bits, and both stay inside the limits of their field: ``min`` and ``max``
(allowed themselves), ``above`` and ``below`` (not allowed themselves), with ``why`` at the end of the message. Texts can
be written down as UTF-8, hold no control characters (a path: no NUL), and are not empty unless that is the default: an
empty text is what an unset variable of a shell leaves. In content (metadata ``free``) and in JSON line breaks are
allowed. A field whose type is a ``Literal`` takes its values only.
"""

import dataclasses
import functools
import math
import types
import typing
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.core.characters import shown
from ptuning.core.choices import values_of
from ptuning.core.errors import UserError

_LIMIT_NAMES = ("min", "max", "above", "below", "why")
_LARGEST = 2**63 - 1
_LONGEST_PATH, _LONGEST_NAME = 4095, 255  # bytes that operating systems take
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # what turns the text after it around


@dataclass(frozen=True)
class Limits:
    """The range of a number.

    Attributes:
        min: smallest value; ``max`` the largest.
        above: values must be more than this; ``below`` less.
        why: said after the range.
    """

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    why: str = ""

    def broken_by(self, value: float) -> bool:
        """Whether a number lies outside. NaN lies outside everything."""
        return not (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def rule(self) -> str:
        """The range in words, as a message ends."""
        low = f"{self.min} or more" if self.min is not None else f"more than {self.above}" if self.above is not None else ""
        high = f"up to {self.max}" if self.max is not None else f"below {self.below}" if self.below is not None else ""
        words = f"allowed is {low}, {high}" if low and high else f"must be {low or high}"
        return words + self.why


def check_values(kind: type, values: Mapping[str, Any]) -> None:
    """Check values for the fields of a dataclass, by their names; names it does not have are left alone.

    Limits stand in the fields' metadata; those of fields that are somebody else's in a mapping ``LIMITS`` of the
    class, and which of those name files or folders in its ``PATHS``.

    Raises:
        UserError: the first value that does not fit, with its flag, the value and what is allowed.
    """
    elsewhere: Mapping[str, Limits] = getattr(kind, "LIMITS", {})
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        limits = elsewhere.get(field.name) or Limits(**{k: field.metadata[k] for k in _LIMIT_NAMES if k in field.metadata})
        setting = values[field.name]
        for value in setting if isinstance(setting, list | tuple) else [setting]:
            if isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                check_number(f"--{field.name}", value, limits)
            elif isinstance(value, str):
                free = bool(field.metadata.get("free")) or value.lstrip().startswith("{")
                path = bool(field.metadata.get("path")) or field.name in getattr(kind, "PATHS", ())
                check_text(f"--{field.name}", value, path=path, free=free, may_be_empty=value == field.default)
        _check_choice(field.name, setting, _choices(kind).get(field.name))


def _check_choice(name: str, value: Any, choices: tuple[Any, ...] | None) -> None:
    if choices is not None and value not in choices:
        names = ", ".join("(not given)" if choice is None else str(choice) for choice in choices)
        raise UserError(f"--{name} {shown(value)}: allowed are {names}")


@functools.cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """The values of the fields of a dataclass whose type hint is a ``Literal``, by name; None first where it is one."""
    choices = {}
    for name, hint in typing.get_type_hints(kind).items():
        members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        literals = [member for member in members if member is not type(None)]
        if literals and all(typing.get_origin(member) is typing.Literal for member in literals):
            none = (None,) if len(literals) < len(members) else ()
            choices[name] = (*none, *(value for member in literals for value in values_of(member)))
    return choices


def check_fields(settings: Any) -> None:
    """Check a dataclass of settings itself, where Python code made it; see :func:`check_values`."""
    check_values(type(settings), {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def check_number(name: str, value: float, limits: Limits) -> None:
    """Refuse a number that is not finite, too large for 64 bits, or outside its limits; ``name`` as it is to be shown.

    Raises:
        UserError: with name, value and range.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} {value}: must be a finite number")
    if limits.broken_by(value):
        raise UserError(f"{name} {shown(value)}: {limits.rule()}")
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise UserError(f"{name} {shown(value)}: larger than any number that is counted with here (at most {_LARGEST})")


def check_text(name: str, text: str, *, path: bool = False, free: bool = False, may_be_empty: bool = False) -> None:
    """Refuse a text that no setting can be.

    Args:
        name: of the setting, as it is to be shown.
        text: its value.
        path: it names a file or a folder.
        free: it may hold line breaks.
        may_be_empty: no text at all is a value.

    Raises:
        UserError: with name, value and reason.
    """
    if not (text if free else text.strip()) and not may_be_empty:
        raise UserError(f"{name} '{shown(text)}': is empty (an unset shell variable?); leave it out, or give a value")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UserError(f"{name} {shown(text)}: not UTF-8 text") from None
    if size > _LONGEST_PATH and (not free or text.lstrip().startswith("{")):  # JSON is free, but not long
        raise UserError(f"{name} {shown(text)}: {size} bytes long; at most {_LONGEST_PATH} are allowed")
    # A file may be called anything but NUL; how its name is shown is the business of who shows it.
    acts = "\0".__contains__ if path else _is_control
    control = next((char for char in text if acts(char) and not (free and char in "\n\r\t")), None)
    if control is not None:
        raise UserError(f"{name} {shown(text)}: holds the control character U+{ord(control):04X}")
    if path and max(len(part.encode("utf-8")) for part in text.split("/")) > _LONGEST_NAME:
        raise UserError(f"{name} {shown(text)}: the name of a file or folder has at most {_LONGEST_NAME} bytes")


def _is_control(char: str) -> bool:
    """Whether a character acts instead of being shown: of a terminal, or on the direction of the text around it."""
    return unicodedata.category(char) == "Cc" or unicodedata.bidirectional(char) in _DIRECTIONS


def check_path(name: str, text: str) -> str:
    """The path that a text is, with ``~`` replaced.

    Raises:
        UserError: no file system can hold it (see :func:`check_text`), or ``~`` names nobody's home.
    """
    check_text(name, text, path=True)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise UserError(f"{name} {shown(text)}: there is no home folder {shown(text.partition('/')[0])}") from None
