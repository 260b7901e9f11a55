"""What a run refuses or warns of while it trains, what it measures on the way, and what it starts from."""

import json
import math

import pytest
import torch
from processes import Command
from runs import log_of, prefix_of, train

from ptuning.core.errors import TrainingError, UserError


@pytest.mark.slow
def test_overflow_ends_a_run_and_is_never_saved(command, tmp_path):
    """A rate beyond all reason overflows within a few steps: the run names step and rows and keeps what is good."""
    argv = command(
        tmp_path / "run", learning_rate="1e38", save_steps=1, logging_steps=1, max_steps=9, lr_scheduler_type="constant",
    )
    run = Command(["train", *argv], tmp_path / "out")
    assert run.wait() == 1
    said = run.text()
    assert "Traceback" not in said
    assert "is not a number" in said
    assert "ower --learning_rate (1e+38" in said
    assert "outside the usual range of a prefix" in said
    assert "'loss': 0.0" not in said
    assert "nan" not in said
    for saved in (tmp_path / "run").glob("checkpoint-*"):
        assert all(torch.isfinite(tensor).all() for tensor in prefix_of(saved).values())
        assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in log_of(saved))


def test_a_bad_row_is_named_and_the_last_good_checkpoint_kept(command, tmp_path, rows_file, monkeypatch):
    """One row's loss becomes infinite at step 3; the message names the two rows of its batch."""
    from ptuning.model.network import ChatGLMNetwork

    calls, forward = [], ChatGLMNetwork.forward

    def broken(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 5:
            output.loss = output.loss * math.inf
        return output

    monkeypatch.setattr(ChatGLMNetwork, "forward", broken)
    with pytest.raises(TrainingError) as caught:
        train(command(tmp_path / "run", save_steps=1))
    said = str(caught.value)
    assert "the loss of step 3 is not a number" in said
    assert said.count(f"{rows_file}:") == 2
    assert f"{tmp_path / 'run' / 'checkpoint-2'} is whole and kept" in said


def test_an_infinite_gradient_stops_as_well(command, tmp_path, monkeypatch):
    """Softmax may hide an overflow in the prefix from the loss; its gradient does not."""
    from ptuning.training.trainer import TuningTrainer

    step = TuningTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        weight = self.model.prefix_encoder.embedding.weight
        if self.state.global_step == 2:
            weight.register_hook(lambda gradient: gradient * math.inf)
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(TuningTrainer, "compute_loss", compute_loss)
    with pytest.raises(TrainingError, match=r"the gradient of step 3 is not a number .* nothing was saved yet"):
        train(command(tmp_path / "run"))


@pytest.mark.parametrize(("rate", "warned"), [("2e-2", False), ("1e-4", False), ("5e-5", True), ("0.3", True)])
def test_a_rate_of_another_method_is_named_once(command, tmp_path, caplog, rate, warned):
    train(command(tmp_path / "run", learning_rate=rate, max_steps=1))
    assert caplog.text.count("outside the usual range of a prefix") == int(warned)


@pytest.mark.slow
def test_init_from_takes_weights_and_starts_at_step_0(command, tmp_path):
    first = train(command(tmp_path / "first", max_steps=3)).checkpoint
    argv = command(tmp_path / "second", max_steps=1, init_from=first, learning_rate="1e-30", pre_seq_len=None)
    second = train(argv).checkpoint
    assert second.name == "checkpoint-1"
    assert all(torch.equal(tensor, prefix_of(second)[name]) for name, tensor in prefix_of(first).items())
    for flag, message in (("ptuning_checkpoint", "give one"), ("resume_from_checkpoint", "give one of them")):
        argv = command(tmp_path / flag, max_steps=1, init_from=first)
        with pytest.raises(UserError, match=message):
            train([*argv, f"--{flag}", str(first)])


def test_changes_are_named_when_a_run_goes_on(command, tmp_path, caplog, golden_cases):
    train(command(tmp_path / "run", max_steps=4, save_steps=2))
    caplog.clear()
    changed = command(tmp_path / "run", max_steps=6, seed=7, max_train_samples=9, label_smoothing_factor=0.1)
    train([*changed, "--resume_from_checkpoint", "auto"])
    for change in (
        "max_steps: 4 → 6", "seed: 42 → 7", "training rows: 11 rows, ", "label_smoothing_factor: (not set) → 0.1",
    ):  # fmt: skip
        assert f"resuming from checkpoint-4 with a change: {change}" in caplog.text
    assert "learning_rate" not in caplog.text
    assert "adam_beta1" not in caplog.text


@pytest.mark.slow
def test_overwriting_sets_the_old_checkpoints_aside(command, tmp_path):
    train(command(tmp_path / "run", max_steps=3))
    result = train(command(tmp_path / "run", max_steps=2, overwrite_output_dir=True))
    assert result.checkpoint.name == "checkpoint-2"
    assert (tmp_path / "run" / "old-checkpoint-3" / "prefix_encoder.safetensors").is_file()


@pytest.mark.slow
def test_scores_during_training_choose_the_checkpoint_and_stop_early(command, tmp_path, rows_file):
    argv = command(
        tmp_path / "run", max_steps=12, save_steps=1, eval_steps=1, eval_strategy="steps", validation_file=rows_file,
        predict_with_generate=True, eval_generate_samples=3, val_max_target_length=6, load_best_model_at_end=True,
        metric_for_best_model="eval_bleu-4", early_stopping_patience=2, learning_rate="1e-30", save_total_limit=1,
    )
    result = train(argv)
    log = [entry for entry in log_of(tmp_path / "run") if "eval_loss" in entry]
    # Nothing is learnt at this rate: the first evaluation stays the best, and two more end the run.
    # The fourth is that of the best checkpoint, after training.
    assert [entry["step"] for entry in log] == [1, 2, 3, 3]
    assert all({"eval_loss", "eval_bleu-4", "eval_rouge-l"} <= set(entry) for entry in log)
    assert result.checkpoint == tmp_path / "run" / "checkpoint-1"
    lines = [json.loads(line) for line in (tmp_path / "run" / "trainer_log.jsonl").read_text().splitlines()]
    assert sum("eval_bleu-4" in line for line in lines) == 4


@pytest.mark.slow
def test_scores_during_training_change_no_weight(command, tmp_path, rows_file):
    """Answering in between draws nothing from the random state of training."""
    settings = {"max_steps": 4, "save_steps": 4}
    train(command(tmp_path / "plain", **settings))
    train(
        command(
            tmp_path / "scored", **settings, eval_steps=1, eval_strategy="steps", validation_file=rows_file,
            predict_with_generate=True, eval_generate_samples=2, val_max_target_length=5, generation="published",
        )
    )
    plain, scored = (prefix_of(tmp_path / name / "checkpoint-4") for name in ("plain", "scored"))
    assert all(torch.equal(plain[name], scored[name]) for name in plain)


@pytest.mark.slow
def test_memory_that_does_not_suffice_says_what_to_lower(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(
        "".join(json.dumps({"content": "类型#裙*颜色#白色" * 12, "summary": "白色的裙子" * 20}) + "\n" for _ in range(600)),
        encoding="utf-8",
    )
    run = Command(
        [
            "train", "--model_name_or_path", "tiny-chatglm", "--train_file", rows, "--prompt_column", "content",
            "--response_column", "summary", "--output_dir", tmp_path / "run", "--pre_seq_len", 8, "--max_steps", 2,
            "--per_device_train_batch_size", 600, "--max_source_length", 200, "--max_target_length", 128, "--device", "cpu",
            "--learning_rate", "1e-2", "--gradient_checkpointing", "false",
        ],
        tmp_path / "out",
        limit_memory=500 * 2**20,
    )
    assert run.wait() == 1, run.text()
    said = run.text()
    assert "Traceback" not in said
    assert "out of memory while tuning" in said
    assert "--per_device_train_batch_size 300 --gradient_accumulation_steps 2 (about" in said
    assert "--gradient_checkpointing (about" in said
    assert "Nothing was saved yet" in said


@pytest.mark.slow
def test_eight_rows_are_learnt_by_heart(tmp_path):
    """tiny-chatglm, eight rows: the loss falls under 0.1 and greedy answers are the references, word for word."""
    from pathlib import Path

    data = Path(__file__).parents[2] / "data" / "adgen-tiny" / "train.json"
    lines = data.read_text(encoding="utf-8").splitlines()[:8]
    (tmp_path / "eight.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {
        "model_name_or_path": "tiny-chatglm", "train_file": tmp_path / "eight.json", "test_file": tmp_path / "eight.json",
        "prompt_column": "content", "response_column": "summary", "output_dir": tmp_path / "run", "pre_seq_len": 32,
        "max_steps": 120, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": "5e-2",
        "max_source_length": 64, "max_target_length": 96, "save_steps": 1000, "logging_steps": 10, "device": "cpu",
        "lr_scheduler_type": "cosine",
    }
    argv = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    result = train([*argv, "--do_train", "--do_predict"])
    last = [entry["loss"] for entry in log_of(result.checkpoint) if "loss" in entry][-1]
    assert last < 0.1
    assert result.tuned.predictions == result.tuned.references
