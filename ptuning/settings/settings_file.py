"""Settings files: JSON or YAML, one mapping of names to values."""

import json
import re
from pathlib import Path
from typing import Any

from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import MAX_DEPTH, guarded, is_regular, parse_json, read_text, shortened

SETTINGS_SUFFIXES = (".json", ".yaml", ".yml")
"""A command-line word that ends so is a settings file."""

MAX_SETTINGS_FILE = 2**18
"""Bytes that a settings file may have. The largest that ships has 2 kB; the YAML reader takes 20 seconds for a megabyte."""

_MAX_VALUES = 100_000  # values of a YAML file after its aliases are written out
_MAX_DIGITS = 400  # of a whole number; a float has 309 at most
_YAML_KINDS = ("str", "int", "float", "bool", "null", "seq", "map", "merge", "value")


def read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """Read a settings file as a mapping, together with its text.

    Raises:
        UserError: missing, unreadable, too long, not JSON or YAML, or not a mapping of names to values.
    """
    if not is_regular(path):
        raise UserError(f"settings file not found: {path} (current directory: {working_directory()})")
    with guarded(path, "settings file", "correct it; settings are UTF-8 text of the form name: value"):
        text = read_text(path, MAX_SETTINGS_FILE)
        content = _read_json(path, text) if path.suffix.lower() == ".json" else _read_yaml(path, text)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of settings (name: value), found {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}{line_of(text, key)}: a setting's name must be a text, found {shortened(repr(key))}")
    return content, text


def _read_json(path: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None


def _read_yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        _check_yaml(path, node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        where = _place(getattr(error, "problem_mark", None))
        raise UserError(f"{path}{where}: not valid YAML: {shortened(getattr(error, 'problem', None) or error)}") from None


def _place(mark: Any) -> str:
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _check_yaml(path: Path, root: Any) -> None:
    """Refuse what YAML allows and settings never need, before a value is made of it.

    Aliases are written out one by one where mappings are merged, or when a value is shown: ten lines can stand for a
    billion values. A date stays the text that stands there.
    """
    import yaml

    sizes: dict[int, int] = {}  # values that a node stands for, its aliases written out
    open_nodes: set[int] = set()

    def measure(node: Any, depth: int) -> int:
        where = f"{path}{_place(node.start_mark)}"
        if id(node) in open_nodes or depth > MAX_DEPTH:
            raise UserError(f"{where}: nested too deeply, or an alias within itself; write settings as name: value")
        if id(node) in sizes:
            return sizes[id(node)]
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "timestamp" and isinstance(node, yaml.ScalarNode):
            node.tag = "tag:yaml.org,2002:str"
        elif kind not in _YAML_KINDS:
            raise UserError(f"{where}: a value of the kind {shortened(kind, 60)}; settings are texts, numbers and lists")
        elif kind == "int" and len(node.value) > _MAX_DIGITS:
            raise UserError(f"{where}: a number with too many digits")
        open_nodes.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(path, node)
        items = [] if isinstance(node, yaml.ScalarNode) else node.value
        inner = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(measure(part, depth + 1) for part in inner)
        open_nodes.discard(id(node))
        if sizes[id(node)] > _MAX_VALUES:
            raise UserError(f"{where}: stands for more than {_MAX_VALUES} values with its aliases; write it without them")
        return sizes[id(node)]

    measure(root, 0)


def _refuse_twice(path: Path, mapping: Any) -> None:
    """Of two entries with one name YAML would silently keep the last."""
    seen = set()
    for key, _ in mapping.value:
        if isinstance(key.value, str) and not key.tag.endswith(":merge"):
            if key.value in seen:
                raise UserError(f"{path}{_place(key.start_mark)}: {shortened(key.value, 80)} stands twice; leave one out")
            seen.add(key.value)


def line_of(text: str, key: object) -> str:
    """``:line`` of a key in a settings file, or nothing where it is not found."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"""\s*[{{,]?\s*["']?{re.escape(str(key))}["']?\s*:""", line):
            return f":{number}"
    return ""
