"""The list of files that lies in a checkpoint, with size and SHA-256 of each: one flipped bit does not go unseen.

``files.json`` is written last and looks like this::

    {"format": "ptuning-files-1", "files": {"optimizer.pt": {"size": 8123, "sha256": "…"}, …}}

Folders of other programs, and copies of single files, have no such list; then there is nothing to hold them against.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.reading import guarded, open_regular, read_json

LIST_FILE = "files.json"
_FORMAT = "ptuning-files-1"
_REMEDY = "take another checkpoint (or remove this list, if the files were changed on purpose)"


class ListedFile(NamedTuple):
    """Size in bytes and SHA-256 of a file when it was written."""

    size: int
    sha256: str


def write_file_list(folder: Path) -> Path:
    """Write the list of all files that a folder holds now, below it as well; returns the list's path."""
    return _write(folder, {
        path.relative_to(folder).as_posix(): _listed(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / LIST_FILE
    })


def add_to_file_list(file: Path) -> Path:
    """Put one more file on the list of its folder; returns the list's path."""
    return _write(file.parent, (read_file_list(file.parent) or {}) | {file.name: _listed(file)})


def _listed(path: Path) -> ListedFile:
    return ListedFile(path.stat().st_size, _sha256(path))


def _write(folder: Path, listed: dict[str, ListedFile]) -> Path:
    files = {name: facts._asdict() for name, facts in listed.items()}
    with replace_when_whole(folder / LIST_FILE) as temporary:
        text = json.dumps({"format": _FORMAT, "files": files}, ensure_ascii=False, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    return folder / LIST_FILE


def read_file_list(folder: Path) -> dict[str, ListedFile] | None:
    """The list of a folder by relative paths; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / LIST_FILE
    if not path.exists():
        return None
    if not path.is_file():
        raise UserError(f"{path} is no file; {_REMEDY}")
    values = read_json(path, _REMEDY)
    files = values.get("files")
    if values.get("format") != _FORMAT or not isinstance(files, dict):
        raise UserError(f"{path}: no list of files in the form {_FORMAT}; {_REMEDY}")
    return {name: _entry(path, name, facts) for name, facts in files.items()}


def _entry(path: Path, name: str, facts: Any) -> ListedFile:
    parts = PurePosixPath(name).parts
    inside = bool(parts) and not PurePosixPath(name).is_absolute() and ".." not in parts and "\0" not in name
    sizes = isinstance(facts, dict) and type(facts.get("size")) is int and isinstance(facts.get("sha256"), str)
    if not inside or not sizes:
        raise UserError(f"{path}: the entry {name!r} is damaged; {_REMEDY}")
    return ListedFile(facts["size"], facts["sha256"])


def what_disagrees(folder: Path, *, contents: bool = True) -> str | None:
    """Say how a folder differs from its list: a file that is missing, of another size, or (``contents``) changed.

    None where they agree, or where there is no list. Reads every listed file once (1 to 2 GB a second) unless ``contents``
    is False, which checks the sizes only.
    """
    try:
        for name, listed in (read_file_list(folder) or {}).items():
            if difference := _difference(folder / name, listed, contents):
                return f"{name} {difference}"
    except UserError as error:
        return str(error)
    return None


def check_listed(file: Path) -> None:
    """Refuse a file that differs from the list beside it; a file without one, or not on it, passes.

    Raises:
        UserError: with the file and what is wrong.
    """
    listed = (read_file_list(file.parent) or {}).get(file.name)
    difference = _difference(file, listed, True) if listed is not None else None
    if difference:
        raise _differs(file, difference)


def check_read(file: Path, listed: ListedFile | None, size: int, sha256: Callable[[], str]) -> None:
    """As :func:`check_listed`, for a file that was read already.

    Args:
        file: that was read.
        listed: its entry in the list; None passes.
        size: in bytes.
        sha256: computes it, where it is needed.
    """
    if listed is not None and (difference := _differing(listed, size, sha256)):
        raise _differs(file, difference)


def _differs(file: Path, difference: str) -> UserError:
    return UserError(f"{file} {difference}; {_REMEDY.replace('this list', str(file.with_name(LIST_FILE)))}")


def _difference(file: Path, listed: ListedFile, contents: bool) -> str | None:
    if not file.is_file():
        return f"is missing ({LIST_FILE} lists it)"
    with guarded(file, remedy="take another checkpoint"):
        return _differing(listed, file.stat().st_size, (lambda: _sha256(file)) if contents else None)


def _differing(listed: ListedFile, size: int, sha256: Callable[[], str] | None) -> str | None:
    if size != listed.size:
        return f"is damaged: it has {size} bytes, {LIST_FILE} says {listed.size}"
    if sha256 is not None and sha256() != listed.sha256:
        return f"is damaged: its contents are not those that {LIST_FILE} states (SHA-256)"
    return None


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered reader
