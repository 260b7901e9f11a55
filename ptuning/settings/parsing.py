"""From a command line or a settings file to values by name: one parser for every verb.

Settings are dataclass fields. They are given as ``--name value`` (or ``--name=value``, ``--na-me value``),
``name=value``, and in a JSON or YAML file named first. A flag beats the file. Every mistake is a
:class:`~ptuning.core.errors.UserError` that names the flag, or the file, line and key.
"""

import argparse
import dataclasses
import difflib
import enum
import json
import logging
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ptuning.core.characters import shown
from ptuning.core.errors import UserError
from ptuning.settings.legacy_flags import Legacy, legacy_for, notice, translate
from ptuning.settings.setting_limits import check_path, check_text, check_values
from ptuning.settings.settings_file import SETTINGS_SUFFIXES, line_of, read_mapping

logger = logging.getLogger(__name__)

_LONGEST_NAME = 80  # of what may be a misspelt setting
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Setting:
    """One thing a user can set: how its text becomes a value, and what help says about it."""

    name: str
    convert: Callable[[str], Any]
    metavar: str
    help: str = ""
    default: Any = None
    switch: bool = False  # may stand alone, meaning True
    many: bool = False  # takes several values, as a list
    or_one: bool = False  # a single one of them is kept as it is, not as a list
    repeat: bool = False  # may be given again and again, every time with more values
    path: bool = False
    aliases: tuple[str, ...] = ()
    shown_as: str = ""  # the alias that help and messages show first
    shortcuts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What was set, and by whom: values by name, the settings file, and a leading folder if one was named (further ones
    in ``more_folders``, for a command that takes several)."""

    values: dict[str, Any]
    config_file: Path | None = None
    folder: str | None = None
    more_folders: tuple[str, ...] = ()

    def build(self, dataclass_type: type, **overrides: Any) -> Any:
        """Make one of the dataclasses from the values that belong to it, once each of them is inside its limits.

        Raises:
            UserError: a value that is not; see :func:`ptuning.settings.setting_limits.check_values`.
        """
        names = {f.name for f in dataclasses.fields(dataclass_type) if f.init}
        chosen = {k: v for k, v in {**self.values, **overrides}.items() if k in names}
        check_values(dataclass_type, chosen)
        return dataclass_type(**chosen)


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{shown(text)!r} is neither true nor false")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is not a number") from None


def _text_or_boolean(text: str) -> str | bool:
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def _choice(values: Sequence[Any]) -> Callable[[str], Any]:
    by_text = {str(value): value for value in values}

    def convert(text: str) -> Any:
        if text in by_text:
            return by_text[text]
        # YAML reads a bare no as false, and "no" is a choice that people mean.
        if text == "False" and "no" in by_text:
            return by_text["no"]
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is not one of {', '.join(by_text)}")

    return convert


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() in ("none", "null") else convert(text)


def _members(hint: Any) -> list[Any]:
    """The alternatives of a type hint, without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [] if hint is type(None) else [hint]


def _reading(hint: Any) -> dict[str, Any] | None:
    """How text is read for a type hint: the matching fields of :class:`Setting`; None: cannot be given as text."""
    members = _members(hint)
    literals = [m for m in members if typing.get_origin(m) is typing.Literal]
    enums = [m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)]
    lists = [m for m in members if typing.get_origin(m) is list or m is list]
    if bool in members:
        if str in members:
            return {"convert": _text_or_boolean, "metavar": "TEXT"}
        return {"convert": _boolean, "metavar": "BOOL", "switch": True}
    if enums or (literals and str not in members):
        values = [m.value for m in enums[0]] if enums else list(typing.get_args(literals[0]))
        return {"convert": _choice(values), "metavar": "|".join(map(str, values))}
    if lists:
        return {"convert": str, "metavar": "TEXT", "many": True, "or_one": str in members}
    for kind, convert, metavar in ((str, str, "TEXT"), (Path, str, "PATH"), (dict, str, "JSON")):
        if any(m is kind or typing.get_origin(m) is kind for m in members):
            return {"convert": convert, "metavar": metavar}
    if float in members:
        return {"convert": _number, "metavar": "X"}
    return {"convert": _whole, "metavar": "N"} if int in members else None


def settings_of(dataclass_type: type) -> dict[str, Setting]:
    """Return the settings that the fields of a dataclass stand for, by name, in the order of the fields."""
    hints = typing.get_type_hints(dataclass_type)
    settings = {}
    for f in dataclasses.fields(dataclass_type):
        reading = _reading(hints[f.name]) if f.init else None
        if reading is None:
            continue
        optional = type(None) in typing.get_args(hints[f.name])
        if optional and reading["metavar"] not in ("TEXT", "PATH"):
            reading["convert"] = _or_none(reading["convert"])
        extra = {k: f.metadata[k] for k in ("path", "aliases", "shown_as", "shortcuts", "repeat") if k in f.metadata}
        default = None if f.default is dataclasses.MISSING else f.default
        settings[f.name] = Setting(f.name, help=f.metadata.get("help", ""), default=default, **reading, **extra)
    return settings


class _ArgumentParser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        own_name = re.sub(r"--\w+/(?=--\w)", "", message)  # of a flag with two names the one that settings files have
        raise UserError(own_name.removeprefix("argument "))


class SettingsParser:
    """Reads settings for one command.

    Args:
        groups: title of a group in ``--help`` → dataclass whose fields are its settings.
        prog: the command as typed, for the help text.
        description: what the command does.
        positional: what may stand before the flags, for the help text.
        many_folders: whether several folders may.
        notes: help texts in place of those of fields that are somebody else's, by name.
    """

    def __init__(
        self,
        groups: Mapping[str, type],
        *,
        prog: str,
        description: str,
        positional: str = "[CONFIG] [FOLDER]",
        many_folders: bool = False,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.prog, self.many_folders, self.groups = prog, many_folders, tuple(groups.values())
        self.settings: dict[str, Setting] = {}
        self.parser = _ArgumentParser(
            prog=prog,
            description=description,
            usage=f"{prog} {positional} [--name value | name=value ...]",
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self.parser.add_argument("-h", "--help", action="help", help="show this and leave")
        for title, dataclass_type in groups.items():
            section = self.parser.add_argument_group(title)
            for setting in settings_of(dataclass_type).values():
                note = (notes or {}).get(setting.name)
                setting = setting if note is None else dataclasses.replace(setting, help=note)
                _add(section, setting)
                self.settings[setting.name] = setting
        self.legacy: dict[str, Legacy] = legacy_for(self.settings)
        self.alias = {alias: s.name for s in self.settings.values() for alias in s.aliases}
        self.shortcut = {k: (s.name, v) for s in self.settings.values() for k, v in s.shortcuts.items()}

    def parse(self, argv: Sequence[str]) -> Given:
        """Read a whole command line: [settings file] [folder] flags.

        Raises:
            UserError: an unknown name, a value that does not fit, an unreadable file.
            SystemExit: ``--help`` was asked for (code 0, after printing it).
        """
        argv = list(argv)
        config: Path | None = None
        folders: list[str] = []
        if argv and argv[0].lower().endswith(SETTINGS_SUFFIXES) and not argv[0].startswith("-"):
            config = Path(check_path("settings file", argv.pop(0)))
        while argv and not argv[0].startswith("-") and "=" not in argv[0] and (self.many_folders or not folders):
            folders.append(check_path("folder", argv.pop(0)))
        flags = self._parse_tokens(argv)
        values = {**(self.parse_file(config) if config else {}), **flags}
        return Given(values, config, folders[0] if folders else None, tuple(folders[1:]))

    def parse_file(self, path: Path) -> dict[str, Any]:
        """Read a JSON or YAML file of settings. Paths in it that do not exist from the current directory are looked up
        from the file's folder and then from the folder above that (a file in ``configs/`` names ``data/...``)."""
        content, text = read_mapping(path)
        values: dict[str, Any] = {}
        for key, value in content.items():
            if value is None:
                continue
            where = f"{path}{line_of(text, key)}: "
            if str(key) == "help":
                raise UserError(f"{where}help: no such setting {self._hint()}")
            try:
                parsed = self._parse_tokens(list(self._tokens_of(str(key), value)))
            except UserError as error:
                raise UserError(where + str(error).replace(f"--{key}", str(key))) from None
            values.update({name: self._located(name, item, path) for name, item in parsed.items()})
        return values

    def _tokens_of(self, key: str, value: Any) -> Iterator[str]:
        """The flags that say the same as one entry of a settings file."""
        name = self.alias.get(key, key)
        if isinstance(value, list):
            if name in self.settings and not self.settings[name].many:
                raise UserError(f"--{key}: takes one value, a list of {len(value)} was given")
            yield f"--{key}"
            yield from map(str, value)
        elif isinstance(value, dict):
            if name in self.settings and self.settings[name].metavar not in ("JSON", "TEXT"):
                raise UserError(f"--{key}: takes one value, a group of settings was given")
            try:
                yield f"--{key}={json.dumps(value)}"
            except (TypeError, ValueError, RecursionError) as error:  # a date, or a group inside itself
                raise UserError(f"--{key}: cannot be written as JSON ({error})") from None
        else:
            yield f"--{key}={value}"

    def _located(self, name: str, value: Any, config: Path) -> Any:
        setting = self.settings.get(name)
        if setting and setting.path and isinstance(value, list):
            return [self._located(name, item, config) for item in value]
        if not (setting and setting.path and isinstance(value, str)) or Path(value).is_absolute():
            return value
        for folder in (Path(), config.parent, config.resolve().parent.parent):
            if (folder / value).exists():
                return value if folder == Path() else str(folder / value)
        return value

    def _parse_tokens(self, tokens: Sequence[str]) -> dict[str, Any]:
        known, old = self._normalised(tokens)
        namespace, rest = self.parser.parse_known_args(known)
        if rest:
            raise UserError(f"{rest[0]!r}: not expected here. {self._hint()}")
        values = dict(vars(namespace))
        for name, raw in old:
            legacy = self.legacy[name]
            check_text(f"--{name}", raw)
            result = translate(name, raw, legacy)
            message = notice(name, raw, legacy, result)
            if message:
                logger.warning("%s", message)
            if result and legacy.keep:
                values[name] = raw
            elif result and result[0] not in values:
                try:
                    values.update(vars(self.parser.parse_args([f"--{result[0]}={result[1]}"])))
                except UserError as error:
                    raise UserError(f"--{name} {shown(raw)}: {error}") from None
        return {name: self._finished(name, value) for name, value in values.items()}

    def _finished(self, name: str, value: Any) -> Any:
        setting = self.settings.get(name)
        if setting and setting.or_one and len(value) == 1:
            return value[0]
        if setting and setting.path and isinstance(value, str):
            return check_path(f"--{name}", value)
        if setting and setting.path and isinstance(value, list):
            return [check_path(f"--{name}", item) for item in value]
        return value

    def _normalised(self, tokens: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Bring tokens to the plain form ``--name=value`` or ``--name value``; set old flags apart as (name, text)."""
        known: list[str] = []
        old: list[tuple[str, str]] = []
        waiting = False  # the flag before still needs its value
        position = 0
        while position < len(tokens):
            token = tokens[position]
            position += 1
            is_pair = not waiting and re.match(r"[A-Za-z_][\w-]*=", token)
            if not token.startswith("--") and not is_pair:
                known.append(token)
                waiting = False
                continue
            name, equals, text = token.removeprefix("--").partition("=")
            name, fixed = self._resolve(name)
            if fixed is not None:
                if equals and text.lower() in _FALSE:
                    raise UserError(f"{token}: this flag takes no value; leave it out to switch it off")
                equals, text = "=", fixed
            if name in self.legacy:
                if not equals and position < len(tokens) and _is_value(tokens[position]):
                    text, position = tokens[position], position + 1
                old.append((name, text or "True"))
                waiting = False
                continue
            if equals and self.settings[name].many:
                known += [f"--{name}", *([text] if self.settings[name].repeat else text.split(","))]
            else:
                known.append(f"--{name}={text}" if equals else f"--{name}")
            waiting = not equals and not self.settings[name].switch
        return known, old

    def _resolve(self, flag: str) -> tuple[str, str | None]:
        """The setting a flag means, and its value where the flag itself fixes it.

        Raises:
            UserError: no such flag; the nearest one is named.
        """
        name = flag.replace("-", "_")
        name = self.alias.get(name, name)
        if name in self.settings or name in self.legacy:
            return name, None
        if name in self.shortcut:
            return self.shortcut[name]
        positive = name.removeprefix("no_")
        if positive != name and positive in self.settings and self.settings[positive].switch:
            return positive, "False"
        if name == "help":
            self.parser.parse_args(["--help"])
        names = [*self.settings, *self.alias, *self.shortcut]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if len(name) < _LONGEST_NAME else []
        raise UserError(f"--{shown(flag)}: no such setting{f'; did you mean --{near[0]}?' if near else ''} {self._hint()}")

    def _hint(self) -> str:
        return f"({self.prog} --help lists them all)"


def _is_value(token: str) -> bool:
    """Whether a token can be the value of the flag before it (and is not the next flag or override)."""
    return not token.startswith("--") and not re.match(r"[A-Za-z_][\w-]*=", token)


def _add(section: argparse._ArgumentGroup, setting: Setting) -> None:
    text = setting.help.replace("%", "%%")
    if setting.default not in (None, "", False):
        default = setting.default.value if isinstance(setting.default, enum.Enum) else setting.default
        text = f"{text} Default: {str(default).replace('%', '%%')}."
    shortcuts = "".join(f", --{name}" for name in setting.shortcuts)
    if shortcuts:
        text = f"{text} In short:{shortcuts[1:]}."
    options: dict[str, Any] = {"type": setting.convert, "help": text, "metavar": setting.metavar}
    if setting.switch:
        options |= {"nargs": "?", "const": True}
    elif setting.many:
        options["nargs"] = "+"
        options["action"] = "extend" if setting.repeat else "store"
    flags = [f"--{name}" for name in (setting.shown_as, setting.name) if name]
    section.add_argument(*flags, dest=setting.name, **options)
