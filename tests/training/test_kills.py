"""SIGKILL at any moment of training, saving and predicting: the run that goes on ends as if nothing had happened."""

import json
import random
import signal
import time

import pytest
from processes import Command
from runs import log_of, prefix_of

pytestmark = pytest.mark.slow

KILLS_A_CHAIN = 10


@pytest.fixture(scope="module")
def flags(command, rows_file):
    """A run with everything that has to survive: log lines between checkpoints, dropout, two epochs, predictions."""

    def make(folder):
        return [
            "train",
            *command(
                folder, max_steps=14, gradient_accumulation_steps=1, save_steps=2, logging_steps=5, save_total_limit=3,
                do_predict=True, test_file=rows_file, max_predict_samples=4, per_device_eval_batch_size=1,
                val_max_target_length=12,
            ),
            "--resume_from_checkpoint", "auto",
        ]

    return make


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """The same run without a kill, and how long it takes once everything is imported."""
    place = tmp_path_factory.mktemp("undisturbed")
    assert Command(["--version"], place / "warm").wait() == 0  # everything is imported now
    began = time.monotonic()
    run = Command(flags(place / "run"), place / "out")
    assert run.wait() == 0, run.text()
    return place / "run", time.monotonic() - began


def what_is_left(folder):
    last = folder / "checkpoint-14"
    steps = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in prefix_of(last).items()},
        "log": log_of(last),
        "lines": [(line["current_steps"], line.get("loss"), line.get("lr")) for line in steps],
        "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
        "predictions": (folder / "generated_predictions.txt").read_bytes(),
        "leftovers": sorted(path.name for path in folder.glob(".*")),
        "train_loss": json.loads((folder / "all_results.json").read_text())["train_loss"],
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_killed_ten_times_equals_one_that_was_not(flags, undisturbed, tmp_path, seed):
    folder, duration = undisturbed
    draw = random.Random(seed)
    kills = chain = 0
    while kills < KILLS_A_CHAIN:
        chain += 1
        place = tmp_path / str(chain)
        while True:
            run = Command(flags(place), tmp_path / "out")
            if kills < KILLS_A_CHAIN:
                if kills % 2:  # while a checkpoint is being written
                    run.wait_for(lambda place=place: any((place / ".saving").glob("checkpoint-*")))
                    time.sleep(draw.uniform(0, 0.01))
                else:
                    run.wait_for(lambda: False, timeout=draw.uniform(0, duration))  # or until it ends before
                run.send(signal.SIGKILL)
            code = run.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, run.text()
            kills += 1
        assert what_is_left(place) == what_is_left(folder)
