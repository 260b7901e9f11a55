"""Writes weights in the published layout while they come: one file, or shards of a stated size with an index."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ptuning.core.atomic import replace_when_whole, writing
from ptuning.core.characters import shown
from ptuning.core.choices import WeightForm
from ptuning.core.errors import UserError

_STEM = {"safetensors": "model", "bin": "pytorch_model"}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes from a size as people write it: ``2GB``, ``500 MB``, ``1.5GiB``, or a plain number of bytes.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise UserError(f"--max_shard_size: size {shown(text)!r} was given; write a number followed by MB or GB (2GB)")
    return size


@dataclass
class ShardWriter:
    """Collects tensors and writes a shard whenever the next tensor would make it larger than stated.

    Memory: the tensors of the shard that is being filled. Files get their final names in :meth:`finish`, when it is known
    how many there are; until then nothing in the folder looks like a whole checkpoint.

    Attributes:
        folder: exists already.
        form: ``safetensors`` or ``bin`` (PyTorch's).
        shard_bytes: largest size of the tensors of one file; a larger tensor gets a file of its own.
    """

    folder: Path
    form: WeightForm
    shard_bytes: int
    total_bytes: int = 0
    _waiting: dict[str, Tensor] = field(default_factory=dict)
    _waiting_bytes: int = 0
    _written: list[list[str]] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor over (on the CPU, not a view of a mapped file)."""
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._waiting_bytes + size > self.shard_bytes:
            self._flush()
        self._waiting[name] = tensor
        self._waiting_bytes += size
        self.total_bytes += size

    def finish(self) -> list[Path]:
        """Write what waits, name the files, and write the index where there are several; returns the files.

        Raises:
            OutputError: a file cannot be written; :meth:`add` likewise.
        """
        if self._waiting:
            self._flush()
        stem, count = _STEM[self.form], len(self._written)
        weight_map: dict[str, str] = {}
        files = []
        for number, names in enumerate(self._written, start=1):
            last = f"-{number:05}-of-{count:05}" if count > 1 else ""
            path = self.folder / f"{stem}{last}.{self.form}"
            self._temporary(number).replace(path)
            weight_map.update(dict.fromkeys(names, path.name))
            files.append(path)
        if count > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            text = json.dumps(index, indent=2) + "\n"
            with replace_when_whole(self.folder / f"{stem}.{self.form}.index.json") as temporary:
                temporary.write_text(text, encoding="utf-8")
        return files

    def _temporary(self, number: int) -> Path:
        return self.folder / f"weights-{number:05}.part"

    def _flush(self) -> None:
        path = self._temporary(len(self._written) + 1)
        with writing(path):
            self._write(path)
        self._written.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0

    def _write(self, path: Path) -> None:
        """Write what waits, and flush it to disk."""
        if self.form == "safetensors":
            from safetensors.torch import save_file

            path.touch()
            mode = path.stat().st_mode  # save_file makes files that only their owner can read
            save_file({name: tensor.contiguous() for name, tensor in self._waiting.items()}, path, metadata={"format": "pt"})
            path.chmod(mode)
        else:
            torch.save(self._waiting, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
