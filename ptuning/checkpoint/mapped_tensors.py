"""The tensors of one weight file: opened once, mapped, and read where and when they are used.

A mapped file counts as resident memory page by page as it is read, up to its whole size, beside the copies made of it. So
the pages of a tensor are given back to the system once it was used: reading a checkpoint needs no memory for it.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ptuning.core.reading import shortened

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}  # fmt: skip
_CHUNK = 2**22  # bytes hashed at a time, a multiple of every page size


class TensorFacts(NamedTuple):
    """What a header says about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class StoredTensor(NamedTuple):
    """A tensor as its file describes it: ``offset`` and ``stride`` count elements of its storage, ``place`` and ``size``
    are the storage's first byte in the file and its length in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    place: int
    size: int


class MappedTensors:
    """The tensors of one file, mapped. A tensor's bytes are read when it is used.

    Args:
        path: of the file, for messages.
        file: the open file; it may be closed afterwards.
        stored: what the file says about each tensor, by name; all of it lies within the file.
    """

    def __init__(self, path: Path, file: BinaryIO, stored: Mapping[str, StoredTensor]) -> None:
        self.path, self.stored = path, stored
        self.length = os.fstat(file.fileno()).st_size
        self._memory = mmap.mmap(file.fileno(), self.length, access=mmap.ACCESS_COPY)

    def facts(self) -> dict[str, TensorFacts]:
        """Shape and dtype of every tensor."""
        return {name: TensorFacts(stored.shape, stored.dtype) for name, stored in self.stored.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped where it lies in the file as the processor needs it, else copied."""
        stored = self.stored[name]
        memory: Any = self._memory
        place, count = stored.place, stored.size // stored.dtype.itemsize
        if not math.prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.dtype)
        if place % stored.dtype.itemsize:
            memory, place = bytearray(memory[place : place + stored.size]), 0
        flat = torch.frombuffer(memory, dtype=stored.dtype, count=count, offset=place)
        return flat.as_strided(stored.shape, stored.stride, stored.offset)

    def tensors(self, starting_with: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every (name, tensor) whose name starts so; its pages are let go before the next one is read."""
        for name in self.stored:
            if name.startswith(starting_with):
                yield name, self.tensor(name)
                self.forget(name)

    def forget(self, name: str) -> None:
        """Let the pages of a tensor go. It stays valid: its bytes are read from the file again when they are used."""
        stored = self.stored[name]
        self._forget(stored.place, stored.place + stored.size)

    def sha256(self) -> str:
        """The SHA-256 of the whole file; reads all of it, and keeps none of it in memory."""
        digest = hashlib.sha256()
        with memoryview(self._memory) as memory:
            for start in range(0, self.length, _CHUNK):
                digest.update(memory[start : start + _CHUNK])
                self._forget(start, start + _CHUNK)
        return digest.hexdigest()

    def _forget(self, start: int, end: int) -> None:
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = min(end, self.length) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and sys.platform.startswith("linux"):  # elsewhere this advice means other things
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)


def safetensors_stored(header: Mapping[str, Any], start: int, length: int) -> dict[str, StoredTensor]:
    """The tensors that the header of a ``.safetensors`` file describes.

    Args:
        header: parsed.
        start: the file's first byte after the header.
        length: of the file in bytes.

    Raises:
        ValueError: an entry that is none, or data that do not follow one another to the end of the file.
    """
    stored = {name: _stored(name, entry, start) for name, entry in header.items() if name != "__metadata__"}
    end = start
    for name, tensor in sorted(stored.items(), key=lambda item: (item[1].place, item[1].size)):
        if tensor.place != end:
            raise ValueError(f"the data of {shortened(repr(name), 80)} do not follow those before them")
        end += tensor.size
    if end != length:
        raise ValueError(f"its tensors end at byte {end}, the file at {length}")
    return stored


def _stored(name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of a header."""
    where = shortened(repr(name), 80)
    shape, dtype, offsets = entry["shape"], _DTYPES.get(entry["dtype"]), entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"{where} has the dtype {shortened(repr(entry['dtype']), 60)}, which is not known")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"{where} has {shortened(numbers, 60)} in place of whole numbers")
    first, last = offsets
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where} claims {shortened(shape, 60)} numbers, its data on file are {last - first} bytes")
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return StoredTensor(dtype, tuple(shape), stride, 0, start + first, last - first)
