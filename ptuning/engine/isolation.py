"""Who makes a step fail: work that is done for many at once is repeated for parts of them, until it is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ptuning.engine.cache import CacheLostError

logger = logging.getLogger(__name__)

Parts = TypeVar("Parts", bound=Sequence[Any])
Result = TypeVar("Result")


def in_parts(
    what: str, parts: Parts, work: Callable[[Parts], Result], again: bool = False
) -> Iterator[tuple[Parts, Result | None, str]]:
    """Do work for all parts at once; if that fails, for each half, and so on, until the parts that fail alone are found.

    Args:
        what: name of the work, for the log.
        parts: what to work on.
        work: may raise. It is called again after the failure was yielded; the caller has to restore the state by then.
        again: whether this is a retry.

    Yields:
        after every try: its parts, the result (None if it failed), and the reason of the failure. A single part is not
        tried again.

    Raises:
        CacheLostError: the cache was lost, so nothing can be tried again.
    """
    result, reason = None, ""
    try:
        result = work(parts)
    except CacheLostError:
        raise
    except Exception as error:
        # Nothing is tried again in here: the exception holds the memory of the attempt.
        reason = reason_of(error)
        if not again or len(parts) == 1:
            logger.exception("%s of %d failed", what, len(parts))
    yield parts, result, reason
    if result is None and len(parts) > 1:
        middle = len(parts) // 2
        for half in (parts[:middle], parts[middle:]):
            yield from in_parts(what, half, work, again=True)  # type: ignore[arg-type, misc]


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
