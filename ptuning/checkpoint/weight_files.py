"""Weight files of a model folder: which there are, whether they are whole, and their tensors one by one."""

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

import torch
from torch import Tensor

from ptuning.checkpoint.mapped_pages import MappedFile
from ptuning.checkpoint.pickled_tensors import PickledTensors
from ptuning.core.errors import UserError
from ptuning.core.reading import guarded, is_regular, listed, open_regular, parse_json, read_text, shortened

_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
_POINTER_START = b"version https://git-lfs"
_SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,200}")
_MAX_HEADER = 32 * 2**20  # bytes of a safetensors header; the 6B model's has 50 kB


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        UserError: missing, unreadable, too long, a Git-LFS pointer, or not a JSON object.
    """
    if not is_regular(path):
        raise UserError(f"{path} is missing; a ChatGLM-6B folder holds config.json, ice_text.model and the weights")
    refuse_pointer(path)
    with guarded(path, "JSON file"):
        try:
            values = parse_json(read_text(path))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {shortened(error)}; download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}; an object is needed; download it again")
    return values


def refuse_pointer(path: Path) -> None:
    """Refuse a Git-LFS pointer, the 130-byte note that a clone without LFS leaves in place of a large file."""
    with guarded(path, remedy="check its permissions, or download it again"), open_regular(path) as file:
        if file.read(len(_POINTER_START)) == _POINTER_START:
            size = os.fstat(file.fileno()).st_size
            raise UserError(
                f"{path} is a Git LFS pointer ({size} bytes), not the file itself: run `git lfs install && "
                f"git lfs pull` in {path.parent}, or download the file from the model's page"
            )


class TensorFacts(NamedTuple):
    """What a header says about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder, all present and whole.

    Attributes:
        paths: one file, or the shards in order.
        safetensors: their form; otherwise PyTorch's.
    """

    paths: tuple[Path, ...]
    safetensors: bool

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every (name, tensor); files are mapped, so memory holds one tensor at a time."""
        for path in self.paths:
            yield from read_tensors(path)

    def facts(self) -> dict[str, TensorFacts]:
        """Shape and dtype of every tensor; of the mapped files only the headers are read."""
        return {name: fact for path in self.paths for name, fact in read_facts(path).items()}


def read_tensors(path: Path, starting_with: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of one ``.safetensors`` or ``.bin`` file; the latter never runs code.

    Files are mapped: a tensor's bytes are read when it is used. All tensors together claim no more memory than twice
    the file's length.

    Args:
        path: the file.
        starting_with: only the names that start so.

    Raises:
        UserError: a damaged file, or one that is no state dict.
    """
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickled
    return read(path, starting_with)


def _read_safetensors(path: Path, starting_with: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with _reading(path, "safetensors"), safe_open(path, framework="pt") as file:
        mapped = MappedFile(path)
        for name in file.keys():  # noqa: SIM118  # a handle, not a mapping
            if name.startswith(starting_with):
                tensor = file.get_tensor(name)
                yield name, tensor
                mapped.forget(tensor)


def _read_pickled(path: Path, starting_with: str) -> Iterator[tuple[str, Tensor]]:
    with _reading(path, "PyTorch weights"):
        pickled = PickledTensors(path)
        mapped = MappedFile(path)
        for name in pickled.stored:
            if name.startswith(starting_with):
                tensor = pickled.tensor(name)
                yield name, tensor
                mapped.forget(tensor)


def read_facts(path: Path) -> dict[str, TensorFacts]:
    """Shape and dtype of every tensor of one file, from its header alone.

    Raises:
        UserError: as :func:`read_tensors`.
    """
    if path.suffix == ".safetensors":
        return {name: TensorFacts(tuple(tensor.shape), tensor.dtype) for name, tensor in _read_safetensors(path, "")}
    with _reading(path, "PyTorch weights"):
        return {name: TensorFacts(stored.shape, stored.dtype) for name, stored in PickledTensors(path).stored.items()}


@contextmanager
def _reading(path: Path, form: str) -> Iterator[None]:
    """The guard of weight files: what is wrong with one of this form."""
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
            check_whole(folder / name)
            return WeightFiles((folder / name,), safetensors)
    return None


def _shards(index: Path) -> tuple[Path, ...]:
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
    for path in paths:
        check_whole(path)
    metadata = values.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(path.stat().st_size for path in paths)
    if isinstance(stated, int | float) and found < stated:
        raise UserError(
            f"the shards in {index.parent} hold {found} bytes; {index.name} states {shortened(stated, 60)}: "
            "a download is incomplete, fetch them again"
        )
    return paths


def check_whole(path: Path) -> None:
    """Refuse a Git-LFS pointer or a truncated weight file.

    Raises:
        UserError: with the file, what is wrong and what to do.
    """
    refuse_pointer(path)
    with guarded(path, "weight file", "check its permissions, or download it again"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix == ".safetensors":
            whole = size >= _stated_size(path, file, size)
        else:
            whole = zipfile.is_zipfile(file) or _is_legacy_pickle(file)
    if not whole:
        raise UserError(f"{path} is incomplete or damaged ({size} bytes); download it again")


def _stated_size(path: Path, file: BinaryIO, size: int) -> float:
    """How long a safetensors file must be by its own header; infinite where the header cannot be read."""
    head = int.from_bytes(file.read(8), "little")
    if not 0 < head <= size - 8:
        return math.inf
    if head > _MAX_HEADER:
        raise UserError(f"{path} has a header of {head} bytes, allowed are {_MAX_HEADER}; download it again")
    try:
        entries = parse_json(file.read(head))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return math.inf
    if not all(isinstance(end, int) for end in ends):
        return math.inf
    return 8 + head + max(ends, default=0)


def _is_legacy_pickle(file: BinaryIO) -> bool:
    """Whether this is PyTorch's form before 1.6; a truncated new one starts like any zip file instead."""
    file.seek(0)
    return file.read(1) == b"\x80"
