"""Weight files of a model folder: which there are, whether they are whole, and their tensors one by one.

Every file is opened once: it is checked and mapped in one go.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from ptuning.checkpoint.mapped_tensors import MappedTensors, TensorFacts, safetensors_stored
from ptuning.checkpoint.pickled_tensors import pickled_tensors
from ptuning.core.errors import UserError
from ptuning.core.reading import (
    MAX_SMALL_FILE,
    guarded,
    is_regular,
    listed,
    open_regular,
    parse_json,
    read_bytes,
    shortened,
)

_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
_POINTER_START = b"version https://git-lfs"
_SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,200}")
_UNREADABLE = "check its permissions, or download it again"
_MAX_HEADER = 32 * 2**20  # bytes of a safetensors header; the 6B model's has 50 kB


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        UserError: missing, unreadable, too long, a Git-LFS pointer, or not a JSON object.
    """
    return parse_json_file(path, read_small_file(path))


def read_small_file(path: Path, max_bytes: int = MAX_SMALL_FILE) -> bytes:
    """The bytes of a small file of a model folder.

    Raises:
        UserError: missing, unreadable, too long, or a Git-LFS pointer.
    """
    if not is_regular(path):
        raise UserError(f"{path} is missing; a ChatGLM-6B folder holds config.json, ice_text.model and the weights")
    with guarded(path, remedy=_UNREADABLE):
        data = read_bytes(path, max_bytes)
    refuse_pointer(path, data, len(data))
    return data


def parse_json_file(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object that a file of a model folder holds.

    Args:
        path: of the file, for messages.
        data: what was read from it.

    Raises:
        UserError: not a JSON object.
    """
    with guarded(path, "JSON file"):
        try:
            values = parse_json(data.decode("utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {shortened(error)}; download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}; an object is needed; download it again")
    return values


def refuse_pointer(path: Path, start: bytes, size: int) -> None:
    """Refuse a Git-LFS pointer, the 130-byte note that a clone without LFS leaves in place of a large file.

    Args:
        path: of the file, for the message.
        start: its first bytes, or all of them.
        size: of the file in bytes.
    """
    if start.startswith(_POINTER_START):
        raise UserError(
            f"{path} is a Git LFS pointer ({size} bytes), not the file itself: run `git lfs install && "
            f"git lfs pull` in {path.parent}, or download the file from the model's page"
        )


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder, all present and whole.

    Attributes:
        parts: one file, or the shards in order.
        safetensors: their form; otherwise PyTorch's.
    """

    parts: tuple[MappedTensors, ...]
    safetensors: bool

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of the files."""
        return tuple(part.path for part in self.parts)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every (name, tensor); files are mapped, so memory holds one tensor at a time."""
        for part in self.parts:
            with _reading(part.path):
                yield from part.tensors()

    def facts(self) -> dict[str, TensorFacts]:
        """Shape and dtype of every tensor; of the mapped files only the headers were read."""
        return {name: fact for part in self.parts for name, fact in part.facts().items()}


def open_tensors(path: Path) -> MappedTensors:
    """Open one ``.safetensors`` or ``.bin`` file; the latter never runs code.

    All tensors together claim no more memory than twice the file's length.

    Raises:
        UserError: a pointer, a truncated or damaged file, or one that is no state dict.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _mapped(path, file, size, _refuse_truncated(path, file, size))


def read_tensors(path: Path, starting_with: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of one file that is known to be whole, see :func:`open_tensors`.

    Args:
        path: the file.
        starting_with: only the names that start so.
    """
    with _reading(path):
        yield from _known(path).tensors(starting_with)


def _known(path: Path) -> MappedTensors:
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _mapped(path, file, size, _read_header(path, file, size))


def _mapped(path: Path, file: BinaryIO, size: int, header: _Header | None) -> MappedTensors:
    """Map an open file, whose header was read where it is a safetensors file."""
    with _reading(path):
        if path.suffix != ".safetensors":
            return MappedTensors(path, file, pickled_tensors(path, file, size))
        if header is None:
            raise ValueError("it has no header")
        return MappedTensors(path, file, safetensors_stored(header.entries, header.end, size))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A weight file, at its start, which is no pointer."""
    with guarded(path, "weight file", _UNREADABLE), open_regular(path) as file:
        refuse_pointer(path, file.read(len(_POINTER_START)), os.fstat(file.fileno()).st_size)
        file.seek(0)
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The guard of weight files: what is wrong with one of its form."""
    form = "safetensors" if path.suffix == ".safetensors" else "PyTorch weights"
    with guarded(path, f"file of {form}"):
        try:
            yield
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # the libraries raise many types for a damaged or foreign file
            reason = shortened(error) or type(error).__name__
            raise UserError(f"{path} cannot be read as {form}: {reason}; download it again") from error


def find_weights(folder: Path) -> WeightFiles | None:
    """The weight files of a folder, checked for presence, pointers and length; None where there are none.

    Raises:
        UserError: a shard is missing, short, or a Git-LFS pointer.
    """
    for name, safetensors in ((_SAFETENSORS, True), (_BIN, False)):
        index = folder / f"{name}.index.json"
        if is_regular(index):
            return WeightFiles(_shards(index), safetensors)
        if is_regular(folder / name):
            return WeightFiles((open_tensors(folder / name),), safetensors)
    return None


def _shards(index: Path) -> tuple[MappedTensors, ...]:
    """The files that an index names, opened."""
    values = read_json(index)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map that names the shards; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    odd = [name for name in names if not _SHARD_NAME.fullmatch(name) or name in (".", "..")]
    if odd:
        raise UserError(f"{index} names a shard outside its folder: {shortened(repr(odd[0]), 80)}; download it again")
    ending = index.suffixes[-3] if len(index.suffixes) > 2 else ""
    foreign = [name for name in names if not name.endswith(ending)]
    if foreign:
        raise UserError(f"{index} names {shortened(foreign[0], 80)}, which is no {ending} file; download it again")
    paths = tuple(index.parent / name for name in names)
    missing = [path.name for path in paths if not is_regular(path)]
    if missing:
        raise UserError(
            f"{index} lists {len(paths)} shards; missing in {index.parent}: {listed(missing)}; "
            "download them into the same folder"
        )
    parts = tuple(open_tensors(path) for path in paths)
    metadata = values.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(part.length for part in parts)
    if isinstance(stated, int | float) and total < stated:
        raise UserError(
            f"the shards in {index.parent} hold {total} bytes; {index.name} states {shortened(stated, 60)}: "
            "a download is incomplete, fetch them again"
        )
    return parts


def check_whole(path: Path) -> None:
    """Refuse a Git-LFS pointer or a truncated weight file.

    Raises:
        UserError: with the file, what is wrong and what to do.
    """
    with _opened(path) as file:
        _refuse_truncated(path, file, os.fstat(file.fileno()).st_size)


class _Header(NamedTuple):
    """The header of a safetensors file, parsed, and the offset of the first byte after it."""

    entries: dict[str, Any]
    end: int


def _refuse_truncated(path: Path, file: BinaryIO, size: int) -> _Header | None:
    """Refuse a file that ends too early; gives the header of a safetensors file."""
    header = _read_header(path, file, size)
    if path.suffix == ".safetensors":
        whole = header is not None and size >= header.end + _data_size(header.entries)
    else:
        whole = zipfile.is_zipfile(file) or _is_legacy_pickle(file)
    if not whole:
        raise UserError(f"{path} is incomplete or damaged ({size} bytes); download it again")
    return header


def _read_header(path: Path, file: BinaryIO, size: int) -> _Header | None:
    """The header of a safetensors file; None where it cannot be read, or where the file is of another form."""
    if path.suffix != ".safetensors":
        return None
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        return None
    if length > _MAX_HEADER:
        raise UserError(f"{path} has a header of {length} bytes, allowed are {_MAX_HEADER}; download it again")
    try:
        entries = parse_json(file.read(length))
    except ValueError:
        return None
    return _Header(entries, 8 + length) if isinstance(entries, dict) else None


def _data_size(entries: dict[str, Any]) -> float:
    """How many bytes of data a header tells of; infinite where it does not say so."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (TypeError, KeyError, IndexError):
        return math.inf
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else math.inf


def _is_legacy_pickle(file: BinaryIO) -> bool:
    """Whether this is PyTorch's form before 1.6; a truncated new one starts like any zip file instead."""
    file.seek(0)
    return file.read(1) == b"\x80"
