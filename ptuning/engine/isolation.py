"""Who makes a step fail: work that is done for many at once is repeated for parts of them, until it is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ptuning.engine.cache import CacheLostError

logger = logging.getLogger(__name__)

Parts = TypeVar("Parts", bound=Sequence[Any])
Found = TypeVar("Found")


def in_parts(
    what: str,
    parts: Parts,
    work: Callable[[Parts], Found],
    done: Callable[[Parts, Found], None],
    failed: Callable[[Parts, str], None],
    again: bool = False,
) -> None:
    """Do work for all at once; where that fails, for one half after the other, and so on: who fails alone is to blame.

    Args:
        what: is done, for the log.
        parts: whom it is done for.
        work: may raise, and must leave everything so that it can be done again once ``failed`` was called.
        done: called with those for whom it worked, and with what came out.
        failed: called with those for whom it failed, and why, before it is tried again; one alone is not tried again.
        again: it is.

    Raises:
        CacheLostError: there is nothing to try again on.
    """
    reason = None
    try:
        found = work(parts)
    except CacheLostError:
        raise
    except Exception as error:
        # Nothing is tried again in here: the exception holds the memory of the attempt.
        reason = reason_of(error)
        if not again or len(parts) == 1:
            logger.exception("%s of %d failed", what, len(parts))
    if reason is None:
        done(parts, found)
        return
    failed(parts, reason)
    if len(parts) > 1:
        middle = len(parts) // 2
        for half in (parts[:middle], parts[middle:]):
            in_parts(what, half, work, done, failed, again=True)  # type: ignore[arg-type]


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
