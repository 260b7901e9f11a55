"""The threads in which bodies are parsed and prompts made, so that the event loop is there for everybody else.

Most of that work keeps Python's one lock. With many such threads the event loop would wait for its turn behind all of them;
so there are few, and what is large waits for what is large, not small requests for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

LARGE = 50_000  # bytes or characters, from which on work is large
_SMALL_WORK = ThreadPoolExecutor(2, thread_name_prefix="ptuning-small")
_LARGE_WORK = ThreadPoolExecutor(1, thread_name_prefix="ptuning-large")
Result = TypeVar("Result")


async def away(
    size: int, function: Callable[..., Result], *arguments: object, undo: Callable[[Result], None] | None = None
) -> Result:
    """Call a function in another thread.

    Args:
        size: of what it works on, in bytes or characters.
        function: to be called.
        arguments: of it.
        undo: called with the result if nobody waits for it any more.
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
        del future  # it holds the error, whose traceback holds this frame: all of a large body would wait for the collector


def _undo(done: Future[Result], undo: Callable[[Result], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
