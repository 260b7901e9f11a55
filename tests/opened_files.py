"""Counts how often the files of folders are opened, by whatever opens them: Python, a library in C or Rust, another process.

The system tells (inotify, so on Linux only).
"""

import contextlib
import ctypes
import os
import struct
import sys
from collections import Counter

import pytest

_ACCESS, _CLOSE, _OPEN, _OVERFLOW, _FOLDER = 0x1, 0x18, 0x20, 0x4000, 0x40000000
_EVENT = struct.Struct("iIII")


@contextlib.contextmanager
def opened_files(*folders):
    """Gives a Counter that is filled when the block ends: (folder's name, file's name) -> how often it was opened."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells which files are opened")
    system = ctypes.CDLL(None, use_errno=True)
    descriptor = system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    counts = Counter()
    try:
        # Equal events in a row are told once: what lies between two openings (reading, closing) is asked for as well.
        names = {
            system.inotify_add_watch(descriptor, os.fsencode(folder), _OPEN | _ACCESS | _CLOSE): folder.name
            for folder in folders
        }
        assert min(names) > 0, os.strerror(ctypes.get_errno())
        yield counts
        with contextlib.suppress(BlockingIOError):
            while data := os.read(descriptor, 1 << 20):
                _count(data, names, counts)
    finally:
        os.close(descriptor)


def _count(data, names, counts):
    place = 0
    while place < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, place)
        place += _EVENT.size
        name = data[place : place + length].rstrip(b"\0").decode()
        place += length
        assert not mask & _OVERFLOW, "more events than the system keeps"
        if mask & _OPEN and not mask & _FOLDER:
            counts[names[watch], name] += 1
