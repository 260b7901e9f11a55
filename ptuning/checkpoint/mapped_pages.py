"""The pages of a mapped file are given back to the system once a tensor in it was used: reading a checkpoint needs no memory
for it.

A mapped file counts as resident memory page by page as it is read, up to its whole size, beside the copies made of it.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

from torch import Tensor

from ptuning.kernels.allocator import madvise

_DONTNEED = 4  # MADV_DONTNEED of Linux; on pages of a file: forget them, and read the file again if they are asked for


class MappedFile:
    """The places where one file is mapped into this process, looked up once (nowhere on other systems than Linux).

    Args:
        path: a file that is mapped already.
    """

    def __init__(self, path: Path) -> None:
        self._places = _places(path) if sys.platform.startswith("linux") else []

    def forget(self, tensor: Tensor) -> None:
        """Let the pages of a tensor go. It stays valid: its bytes are read from the file again when they are used.

        A tensor that does not lie in the mapped file is left alone.
        """
        start, size = tensor.data_ptr(), tensor.untyped_storage().nbytes()
        if not any(low <= start and start + size <= high for low, high in self._places):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            madvise()(first, last - first, _DONTNEED)  # advice: nothing to do where it is not taken


def _places(path: Path) -> list[tuple[int, int]]:
    """Address ranges, neighbours joined, at which the file is mapped."""
    wanted, found = os.path.realpath(path), list[tuple[int, int]]()
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == wanted:
            low, high = (int(number, 16) for number in fields[0].split("-"))
            if found and found[-1][1] == low:
                low = found.pop()[0]
            found.append((low, high))
    return found
