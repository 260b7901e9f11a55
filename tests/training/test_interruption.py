"""Ctrl-C and SIGTERM in real processes: the step is saved, the message says how to resume, and resuming loses nothing."""

import json
import signal

import pytest
from processes import Command
from runs import log_of, prefix_of, train

pytestmark = pytest.mark.slow

LONG = {"max_steps": 60, "save_steps": 500, "logging_steps": 7}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_step_and_it_resumes_from_there(command, tmp_path, number, code):
    argv = command(tmp_path / "run", **LONG)
    run = Command(["train", *argv], tmp_path / "out")
    run.wait_for(lambda: "7/60" in run.text())
    run.send(number)
    assert run.wait() == code, run.text()
    said = run.text()
    assert "Traceback" not in said
    assert f"stopped by {signal.Signals(number).name} after step" in said
    assert "--resume_from_checkpoint auto" in said
    saved = list((tmp_path / "run").glob("checkpoint-*"))
    assert len(saved) == 1
    stopped_at = int(saved[0].name.split("-")[1])
    assert 7 <= stopped_at < 60
    assert not (tmp_path / "run" / "train_results.json").exists()
    train([*argv, "--resume_from_checkpoint", "auto"])
    train(command(tmp_path / "straight", **LONG))
    whole, went_on = (tmp_path / name / "checkpoint-60" for name in ("straight", "run"))
    assert all((prefix_of(whole)[name] == tensor).all() for name, tensor in prefix_of(went_on).items())
    assert log_of(went_on) == log_of(whole)


def test_a_second_signal_ends_it_at_once(command, tmp_path):
    argv = command(tmp_path / "run", max_steps=3, gradient_accumulation_steps=4000, logging_steps=1)
    run = Command(["train", *argv, "--num_train_epochs", "1"], tmp_path / "out")
    run.wait_for(lambda: (tmp_path / "run" / "trainer_log.jsonl").exists())
    run.send(signal.SIGTERM)
    run.wait_for(lambda: "once more ends it at once" in run.text())
    run.send(signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM
    assert list((tmp_path / "run").glob("checkpoint-*")) == []


def test_the_log_of_a_run_names_rate_and_rest(command, tmp_path):
    """Plain lines where there is no terminal, and one object a line in trainer_log.jsonl."""
    run = Command(["train", *command(tmp_path / "run", max_steps=4, logging_steps=2)], tmp_path / "out")
    assert run.wait() == 0, run.text()
    assert "2/4 {'loss': " in run.text()
    assert "tokens/s, 0:0" in run.text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in lines] == [2, 4]
    assert [line["percentage"] for line in lines] == [50, 100]
    assert all(line["tokens_per_second"] > 0 and line["total_steps"] == 4 and line["lr"] >= 0 for line in lines)
