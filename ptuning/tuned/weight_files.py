"""Weight files of a model folder: which there are, whether they are whole, and their tensors one by one."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptuning.plain.errors import UserError
from ptuning.tuned.mapped_pages import MappedFile

_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
_POINTER_START = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        UserError: missing, a Git-LFS pointer, or not a JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; a ChatGLM-6B folder holds config.json, ice_text.model and the weights")
    refuse_pointer(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}; download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}; an object is needed; download it again")
    return values


def refuse_pointer(path: Path) -> None:
    """Refuse a Git-LFS pointer, the 130-byte note that a clone without LFS leaves in place of a large file."""
    with path.open("rb") as file:
        if file.read(len(_POINTER_START)) == _POINTER_START:
            raise UserError(
                f"{path} is a Git LFS pointer ({path.stat().st_size} bytes), not the file itself: run `git lfs install && "
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
        return {name: TensorFacts(tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors()}


def read_tensors(path: Path, starting_with: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of one ``.safetensors`` or ``.bin`` file; the latter never runs code (weights_only).

    Files are mapped: a tensor's bytes are read when it is used.

    Args:
        path: the file.
        starting_with: only the names that start so.

    Raises:
        UserError: a damaged file, or one that is no state dict.
    """
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickled
    return read(path, starting_with)


def _read_safetensors(path: Path, starting_with: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            mapped = MappedFile(path)
            for name in file.keys():  # noqa: SIM118  # a handle, not a mapping
                if name.startswith(starting_with):
                    tensor = file.get_tensor(name)
                    yield name, tensor
                    mapped.forget(tensor)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}; download it again") from error


def _read_pickled(path: Path, starting_with: str) -> Iterator[tuple[str, Tensor]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many types for a damaged or foreign file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} cannot be read as PyTorch weights: {reason}; download it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; a state dict of tensors is needed")
    mapped = MappedFile(path)
    while state:
        name = next(iter(state))
        value = state.pop(name)
        if isinstance(value, Tensor) and str(name).startswith(starting_with):
            yield name, value
            mapped.forget(value)


def find_weights(folder: Path) -> WeightFiles | None:
    """The weight files of a folder, checked for presence, pointers and length; None where there are none.

    Raises:
        UserError: a shard is missing, short, or a Git-LFS pointer.
    """
    for name, safetensors in ((_SAFETENSORS, True), (_BIN, False)):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return WeightFiles(_shards(index), safetensors)
        if (folder / name).is_file():
            check_whole(folder / name)
            return WeightFiles((folder / name,), safetensors)
    return None


def _shards(index: Path) -> tuple[Path, ...]:
    values = read_json(index)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map that names the shards; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    elsewhere = [name for name in names if "/" in name or "\\" in name or name in (".", "..")]
    if elsewhere:
        raise UserError(f"{index} names a shard outside its folder: {elsewhere[0]}; download it again")
    paths = tuple(index.parent / name for name in names)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{index} lists {len(paths)} shards; missing in {index.parent}: {', '.join(missing)}; "
            "download them into the same folder"
        )
    for path in paths:
        check_whole(path)
    metadata = values.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(path.stat().st_size for path in paths)
    if isinstance(stated, int | float) and found < stated:
        raise UserError(
            f"the shards in {index.parent} hold {found} bytes; {index.name} states {int(stated)}: "
            "a download is incomplete, fetch them again"
        )
    return paths


def check_whole(path: Path) -> None:
    """Refuse a Git-LFS pointer or a truncated weight file.

    Raises:
        UserError: with the file, what is wrong and what to do.
    """
    refuse_pointer(path)
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        whole = size >= _stated_size(path)
    else:
        whole = zipfile.is_zipfile(path) or (size > 0 and _is_legacy_pickle(path))
    if not whole:
        raise UserError(f"{path} is incomplete or damaged ({size} bytes); download it again")


def _stated_size(path: Path) -> float:
    """How long a safetensors file must be by its own header; infinite where the header cannot be read."""
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        if not 0 < head < path.stat().st_size:
            return math.inf
        try:
            entries = json.loads(file.read(head))
            ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return math.inf
    return 8 + head + max(ends, default=0)


def _is_legacy_pickle(path: Path) -> bool:
    """Whether this is PyTorch's form before 1.6; a truncated new one starts like any zip file instead."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"
