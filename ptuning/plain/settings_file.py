"""Settings files: JSON or YAML, one mapping of names to values."""

import json
import re
from pathlib import Path
from typing import Any

from ptuning.plain.errors import UserError
from ptuning.plain.paths import working_directory

SETTINGS_SUFFIXES = (".json", ".yaml", ".yml")
"""A command-line word that ends so is a settings file."""


def read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """Read a settings file as a mapping, together with its text.

    Raises:
        UserError: missing, unreadable, not JSON or YAML, or not a mapping of names to values.
    """
    if not path.is_file():
        raise UserError(f"settings file not found: {path} (current directory: {working_directory()})")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    else:
        content = _read_yaml(path, text)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of settings (name: value), found {type(content).__name__}")
    return content, text


def _read_yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    return {} if content is None else content


def line_of(text: str, key: object) -> str:
    """``:line`` of a key in a settings file, or nothing where it is not found."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"""\s*[{{,]?\s*["']?{re.escape(str(key))}["']?\s*:""", line):
            return f":{number}"
    return ""
