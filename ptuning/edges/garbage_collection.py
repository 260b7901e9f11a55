"""Keeps Python's garbage collector away from the modules and tensors that a command loads at its start and keeps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """A context in which nothing is collected; what was allocated by its end is exempt from later collections.

    Imported modules stay anyway. Scanning them again and again takes a fifth of the time to the first prompt, and scanning
    them once more afterwards half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
