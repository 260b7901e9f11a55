"""Two real processes under torchrun (gloo, CPU): the gradients are those of one process with twice the accumulation."""

import sys

import pytest
import torch
from processes import run_with_children
from runs import log_of, prefix_of, train

pytestmark = pytest.mark.slow


def test_two_processes_take_the_steps_of_one(command, tmp_path):
    # Without dropout, for each process draws a mask of its own.
    same = {"max_steps": 3, "save_steps": 3, "logging_steps": 1, "max_train_samples": 8, "prefix_dropout": 0}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ptuning"]
    argv = command(tmp_path / "two", **same, gradient_accumulation_steps=1)
    done = run_with_children([*launch, "train", *argv], timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    train(command(tmp_path / "one", **same, gradient_accumulation_steps=2))
    two, one = (tmp_path / name / "checkpoint-3" for name in ("two", "one"))
    for name, tensor in prefix_of(one).items():
        torch.testing.assert_close(prefix_of(two)[name], tensor, rtol=0, atol=2e-6)
    losses = [[entry["loss"] for entry in log_of(folder) if "loss" in entry] for folder in (two, one)]
    assert len(losses[0]) == 3
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-4)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("talk to it") == 1  # one process speaks for both
