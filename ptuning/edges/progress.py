"""The one progress display of every command, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ptuning.core.progress import OpenProgress, Progress
from ptuning.edges.output import inline, print_error

SECONDS_BETWEEN_LINES = 30.0
"""How often progress is told where standard error is no terminal."""


def open_progress(title: str, total: int, *, done: int = 0, unit: str = "row") -> Progress:
    """A display that suits standard error; see :class:`ptuning.core.progress.OpenProgress`."""
    return _Bar(title, total, done, unit) if sys.stderr.isatty() else _Lines(title, total, done, unit)


def terminal_bar() -> OpenProgress | None:
    """For work that logs lines of its own: what opens a bar, or None where standard error is no terminal."""
    return open_progress if sys.stderr.isatty() else None


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Log lines and warnings of libraries go above the bar instead of through it."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logging.captureWarnings(True)
    try:
        with logging_redirect_tqdm([logging.getLogger(), logging.getLogger("transformers")]):
            yield
    finally:
        logging.captureWarnings(False)


class _Bar:
    """A bar that a terminal draws again and again."""

    def __init__(self, title: str, total: int, done: int, unit: str) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(
            total=total, initial=done, desc=inline(title), unit=unit, unit_scale=unit == "B", file=sys.stderr,
            dynamic_ncols=True,
        )

    def advance(self, amount: int) -> None:
        self._bar.update(min(amount, self._bar.total - self._bar.n))

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(inline(text))

    def line(self, text: str) -> None:
        self._bar.write(inline(text), file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """A line every half minute, and one at the end."""

    def __init__(self, title: str, total: int, done: int, unit: str) -> None:
        self._title, self._total, self._earlier, self._done = title, total, done, done
        self._unit, self._scale = ("MB", 1e6) if unit == "B" else (f"{unit}s", 1.0)
        self._began = self._last_line = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done = min(self._done + amount, self._total)
        now = time.monotonic()
        if self._done < self._total and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        rate = max(self._done - self._earlier, 1e-9) / max(now - self._began, 1e-9)
        left = self._total - self._done
        remaining = f", {timedelta(seconds=round(left / rate))} left" if left else ""
        count = f"{self._amount(self._done)}/{self._amount(self._total)}"
        print_error(f"{self._title}: {count} {self._unit}, {rate / self._scale:.1f} {self._unit}/s{remaining}")

    def _amount(self, number: int) -> str:
        return str(number) if self._scale == 1.0 else f"{number / self._scale:.1f}"

    def note(self, text: str) -> None:
        """Figures go with a bar only."""

    def line(self, text: str) -> None:
        print_error(text)

    def close(self) -> None:
        """Nothing is open."""
