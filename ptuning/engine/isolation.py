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
    """Do work for all at once; where that fails, for one half after the other, and so on: who fails alone is to blame.

    Args:
        what: is done, for the log.
        parts: whom it is done for.
        work: may raise; it is tried again after the caller was told, who leaves everything so that it can be.
        again: it is a further try.

    Yields:
        after every try: for whom, what came out (None where it failed), and why it failed. One alone is not tried again.

    Raises:
        CacheLostError: there is nothing to try again on.
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
