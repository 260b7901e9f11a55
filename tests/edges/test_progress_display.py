"""The one progress display: a bar on a terminal, a line now and then elsewhere."""

import io
import sys

import pytest

from ptuning.edges import progress
from ptuning.edges.progress import open_progress, terminal_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_every_half_minute_and_at_the_end(clock, capsys):
    display = open_progress("base\nmodel", 40, done=10)
    for _ in range(30):
        clock[0] += 2
        display.advance(1)
    display.close()
    assert capsys.readouterr().err.splitlines() == [
        "base\\nmodel: 25/40 rows, 0.5 rows/s, 0:00:30 left",
        "base\\nmodel: 40/40 rows, 0.5 rows/s",
    ]
    assert terminal_bar() is None


def test_bytes_are_megabytes_and_no_more_than_all_of_them(clock, capsys):
    display = open_progress("quantising", 3_000_000, unit="B")
    clock[0] = 2
    display.advance(5_000_000)
    assert capsys.readouterr().err == "quantising: 3.0/3.0 MB, 1.5 MB/s\n"


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert terminal_bar() is open_progress
    display = open_progress("tuning\x1b[31m", 4, done=2, unit="step")
    display.note("loss 3.1")
    display.advance(7)
    display.line("step 4: done")
    display.close()
    display.close()
    shown = terminal.getvalue()
    assert "tuning\\x1b[31m: 100%" in shown
    assert "4/4" in shown
    assert "loss 3.1" in shown
    assert "step 4: done\n" in shown
