"""What the system does with memory: whether glibc keeps what is freed for the next tensor (fast) or gives it back (lean),
and the size of the pages under weights."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ptuning.core import limits

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MOST = -1, -3, -4  # mallopt's names: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
_NEVER = -1
_HUGE_PAGE, _HUGEPAGE = 1 << 21, 14  # bytes; MADV_HUGEPAGE of Linux


@functools.cache
def return_freed_memory() -> bool:
    """From now on, memory of 0.5 MB or more goes back to the system when a tensor lets it go; False where glibc is not.

    By default glibc raises that limit up to 32 MB by itself, and activations of one layer after the other leave gaps between
    the keys and values that stay: 0.1 GB for a prompt of 128 tokens on the 6B model. It holds for the whole process.
    """
    return _mallopt(_MMAP_THRESHOLD, limits.MIN_RETURNED_BYTES_LEAN)


@functools.cache
def keep_freed_memory() -> bool:
    """From now on, freed memory stays with the process; False where glibc is not.

    A training step frees its activations and logits and asks for the same again. Given back in between, they are zeroed by
    the system page by page at every step (docs/performance.md). It holds for the whole process.
    """
    return _mallopt(_MMAP_MOST, 0) and _mallopt(_TRIM_THRESHOLD, _NEVER)


def on_large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, its memory on pages of 2 MB where Linux has some to give; call it before anything is written.

    Weights are read from end to end for every token; looking up a page of 4 KB after the other costs a quarter of the rate
    (docs/performance.md). Whole pages inside the tensor only: it takes no more memory.
    """
    if sys.platform.startswith("linux") and tensor.device.type == "cpu":
        start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
        if end > start:
            madvise()(start, end - start, _HUGEPAGE)  # advice: nothing to do where it is not taken
    return tensor


def zeros_when_read(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the system makes each page when it is first touched, and what is never touched takes nothing."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    # Pages of 4 KB on purpose: a page of 2 MB took eight times as long to be made (docs/performance.md).
    fresh = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(fresh, dtype=dtype).view(shape)


@functools.cache
def madvise() -> Callable[[int, int, int], int]:
    """Linux's function of that name: address, bytes, advice."""
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function


def _mallopt(what: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(what, value))
    except (AttributeError, OSError):
        return False
