"""What glibc does with freed memory: keep it for the next tensor (fast), or give it back to the system (lean)."""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MOST = -1, -3, -4  # mallopt's names: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
_LARGE, _NEVER = 1 << 20, -1


@functools.cache
def return_freed_memory() -> bool:
    """From now on, memory of 1 MB or more goes back to the system when a tensor lets it go; False where glibc is not.

    By default glibc raises that limit up to 32 MB by itself, and activations of one layer after the other leave gaps between
    the keys and values that stay: 0.1 GB for a prompt of 128 tokens on the 6B model. It holds for the whole process.
    """
    return _mallopt(_MMAP_THRESHOLD, _LARGE)


@functools.cache
def keep_freed_memory() -> bool:
    """From now on, freed memory stays with the process; False where glibc is not.

    A training step frees its activations and logits and asks for the same again. Given back in between, they are zeroed by
    the system page by page at every step (docs/performance.md). It holds for the whole process.
    """
    return _mallopt(_MMAP_MOST, 0) and _mallopt(_TRIM_THRESHOLD, _NEVER)


def _mallopt(what: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(what, value))
    except (AttributeError, OSError):
        return False
