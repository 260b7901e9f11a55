"""The threads in which bodies are parsed and prompts built, so that the event loop stays free for other requests.

Most of that work holds Python's global lock. With many such threads the event loop would queue for the lock behind all of
them, so there are few; and large work has a thread of its own, so that small requests do not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

LARGE = 50_000
"""Bytes or characters from which on work counts as large."""
_SMALL_WORK = ThreadPoolExecutor(2, thread_name_prefix="ptuning-small")
_LARGE_WORK = ThreadPoolExecutor(1, thread_name_prefix="ptuning-large")
Result = TypeVar("Result")


async def run_in_worker(
    size: int, function: Callable[..., Result], *arguments: object, undo: Callable[[Result], None] | None = None
) -> Result:
    """Call a function in a worker thread and wait for its result.

    Args:
        size: of what the function works on, in bytes or characters.
        function: to be called.
        arguments: of the function.
        undo: called with the result if the caller was cancelled meanwhile.
    """
    pool = _LARGE_WORK if size >= LARGE else _SMALL_WORK
    future = pool.submit(function, *arguments)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if undo is not None:
            future.add_done_callback(lambda done: _undo(done, undo))
        raise
    finally:
        # The future holds the error, whose traceback holds this frame: a large body would stay in memory until the garbage
        # collector runs.
        del future


def _undo(done: Future[Result], undo: Callable[[Result], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
