"""What a user sees while training: a bar in a real terminal, one line a log step elsewhere, files in any case."""

import json
import os
import select
import struct

import pytest
from processes import Command
from runs import train

from ptuning.training.progress import LOG_FILE, _keep_until

fcntl, termios = (pytest.importorskip(name, reason="terminals of POSIX systems") for name in ("fcntl", "termios"))


def in_a_terminal(argv):
    """Run the command in a terminal of 50 lines and 160 columns; its exit code, and what was shown."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    run, shown = Command(argv, os.ttyname(theirs)), b""
    while run.running() or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    return run.wait(), shown.decode()


@pytest.mark.slow
def test_a_terminal_shows_one_bar_and_nothing_breaks_it(command, tmp_path, rows_file):
    argv = command(
        tmp_path / "run", disable_tqdm=None, max_steps=6, logging_steps=2, do_predict=True, test_file=rows_file,
        max_predict_samples=2, val_max_target_length=8,
    )
    code, said = in_a_terminal(["train", *argv])
    assert code == 0, said
    last = [part for part in said.replace("\r", "\n").split("\n") if "tuning: 100%" in part][-1]
    assert "6/6" in last
    assert "loss " in last
    assert "lr " in last
    assert "tokens/s" in last
    assert "step/s" in last or "s/step" in last
    assert "{'loss'" not in said  # the bar carries it
    for chatter in ("Building prefix dict", "Loading model from cache", "FutureWarning", "UserWarning"):
        assert chatter not in said


def test_only_whole_lines_up_to_the_step_are_kept(tmp_path):
    path = tmp_path / "new" / LOG_FILE
    _keep_until(path, 0)
    assert path.read_text() == ""
    path.write_text('{"current_steps": 5}\n{"current_steps": 10}\nnoise\n{"current_st')
    _keep_until(path, 5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"current_steps": 5}]
    _keep_until(path, 0)
    assert path.read_text() == ""


def test_tensorboard_gets_the_curve(command, tmp_path):
    argv = command(tmp_path / "run", max_steps=4, logging_steps=2, report_to="tensorboard", logging_dir=tmp_path / "board")
    train(argv)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
