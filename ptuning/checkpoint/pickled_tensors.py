"""The tensors of a PyTorch file (``.bin``), without running its pickle and without believing its sizes.

``torch.load`` refuses code, but not claims: a stride of 0 makes 8 GB of one kilobyte, and a file of PyTorch before 1.6, or
a compressed one, is copied into memory whole. Here the pickle's steps are followed by hand, see
:mod:`ptuning.checkpoint.pickle_steps`. What comes out is a table of places in the file, held against
its length, and the file is mapped.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from ptuning.checkpoint.mapped_tensors import StoredTensor
from ptuning.checkpoint.pickle_steps import MAX_PICKLE, PickleSteps, UnplacedTensor
from ptuning.core.errors import UserError
from ptuning.core.reading import shortened

_LARGEST_SHARE = 2  # all tensors together have at most so many times the file's bytes: embedding and head may be one storage
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of its name and of what else there is


def pickled_tensors(path: Path, file: BinaryIO, length: int) -> dict[str, StoredTensor]:
    """What a ``.bin`` file of any PyTorch since 0.4 says about each of its tensors, by name; all of it lies in the file.

    Args:
        path: for messages.
        file: the open file.
        length: of the file in bytes.

    Raises:
        ValueError, and whatever else a damaged file brings about: see :func:`ptuning.checkpoint.weight_files.open_tensors`,
        which has the words for it.
    """
    file.seek(0)
    read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
    file.seek(0)
    state, places = read(file, length)
    if not isinstance(state, dict):
        kind = "Tensor" if isinstance(state, UnplacedTensor) else type(state).__name__
        raise UserError(f"{path} holds a {kind}; a state dict of tensors is needed")
    return _placed(state, places, length)


def _placed(state: dict[Any, Any], places: dict[str, tuple[int, int]], length: int) -> dict[str, StoredTensor]:
    """The tensors of a state dict with their places, each held against its storage, and all against the file."""
    stored: dict[str, StoredTensor] = {}
    total = 0
    for name, value in state.items():
        if not isinstance(value, UnplacedTensor):
            continue
        if not isinstance(name, str):
            raise ValueError(f"a tensor's name is {shortened(repr(name), 60)}, which is no text")
        where = shortened(name, 80)
        place, size = places.get(value.storage.key, (0, -1))
        if value.storage.nbytes > size:
            raise ValueError(f"the data of {where} is not whole")
        size = value.storage.nbytes
        elements, width = math.prod(value.shape), value.dtype.itemsize
        last = value.offset + sum((n - 1) * step for n, step in zip(value.shape, value.stride, strict=True))
        if elements and (last >= size // width or elements > size // width):
            raise ValueError(f"{where} claims {list(value.shape)} numbers, its data on file are {size} bytes")
        total += elements * width
        stored[name] = StoredTensor(value.dtype, value.shape, value.stride, value.offset, place, size)
    if total > _LARGEST_SHARE * length:
        raise ValueError(f"its tensors claim {total} bytes, the file has {length}")
    return stored


# --- the two forms of the file


def _read_zip(file: BinaryIO, length: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """What the pickle in an archive describes, and (place, size) of every storage."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two parts of it have one name")
        tops = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(tops) != 1 or f"{tops[0]}/constants.pkl" in members:
            raise ValueError("an archive of another kind, such as a TorchScript model")
        top = tops[0]
        if f"{top}/byteorder" in members and archive.open(f"{top}/byteorder").read(16) != b"little":
            raise ValueError("written by a big-endian machine")
        pickled = archive.open(f"{top}/data.pkl").read(MAX_PICKLE + 1)
        if len(pickled) > MAX_PICKLE:
            raise ValueError(f"its description of the tensors has more than {MAX_PICKLE} bytes")
    state = PickleSteps().follow(io.BytesIO(pickled))
    places = {}
    for name, member in members.items():
        if name.startswith(f"{top}/data/"):
            plain = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
            if not plain or member.flag_bits & 1:
                raise ValueError("its data are compressed or encrypted; PyTorch stores them as they are")
            file.seek(member.header_offset)
            signature, named, more = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            place = member.header_offset + _LOCAL_HEADER.size + named + more
            if signature != b"PK\x03\x04" or place + member.file_size > length:
                raise ValueError("its parts reach beyond its end")
            places[name.removeprefix(f"{top}/data/")] = (place, member.file_size)
    return state, places


def _read_legacy(file: BinaryIO, length: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same of the form before PyTorch 1.6: five pickles, and the storages one after the other."""
    if PickleSteps().follow(file) != _LEGACY_MAGIC or PickleSteps().follow(file) != _LEGACY_PROTOCOL:
        raise ValueError("not a file of PyTorch")
    system = PickleSteps().follow(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("written by a big-endian machine")
    steps = PickleSteps()
    state, keys = steps.follow(file), PickleSteps().follow(file)
    widths = {storage.key: (storage.elements, storage.itemsize) for storage in steps.storages}
    places, place = {}, file.tell()
    for key in keys if isinstance(keys, list) else ():
        file.seek(place)
        elements, width = widths[key]
        if int.from_bytes(file.read(8), "little") != elements or place + 8 + elements * width > length:
            raise ValueError("its data are not whole")
        places[key] = (place + 8, elements * width)
        place += 8 + elements * width
    return state, places
