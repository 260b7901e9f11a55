"""How long work says how far it is. What shows it is the edge's: a loop is given something that opens a display."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A display of one piece of work, until it is closed."""

    def advance(self, amount: int) -> None:
        """So much more is done."""

    def note(self, text: str) -> None:
        """Show figures beside the count, in place of those before."""

    def line(self, text: str) -> None:
        """Leave a line above the count."""

    def close(self) -> None:
        """The work is done, or was given up; may be called twice."""


class OpenProgress(Protocol):
    """Opens a display."""

    def __call__(self, title: str, total: int, *, done: int = 0, unit: str = "row") -> Progress:
        """A display of ``total`` units, ``done`` of which an earlier run did: they do not count for the rate. Bytes have the
        unit ``B``."""


class _Silent:
    """Shows nothing."""

    def advance(self, amount: int) -> None: ...

    def note(self, text: str) -> None: ...

    def line(self, text: str) -> None: ...

    def close(self) -> None: ...


def silent(title: str, total: int, *, done: int = 0, unit: str = "row") -> Progress:
    """Opens no display at all."""
    return _Silent()
