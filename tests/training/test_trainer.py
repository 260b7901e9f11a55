"""The training loop in real runs of the command: checkpoints, resuming, what is written and what is refused."""

import json
import os
import shutil

import pytest
import torch
from processes import Command, finished
from runs import log_of, prefix_of, train

from ptuning import load_model
from ptuning.checkpoint.checkpoint import open_named
from ptuning.data.collator import TrainingCollator
from ptuning.data.examples import prepare_examples
from ptuning.data.run_rows import prepare_rows
from ptuning.edges.run_arguments import parse_arguments
from ptuning.methods.prefix import PREFIX
from ptuning.training.trainer import TuningTrainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory, command):
    """Twelve steps without a stop."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train(command(folder))


def test_twelve_steps_log_and_save(straight):
    folder, result = straight
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12", "checkpoint-5"]
    assert result.checkpoint == folder / "checkpoint-12"
    assert result.train_metrics["train_samples"] == 11
    log = log_of(folder)
    assert log[0]["step"] == 10
    assert log[0]["loss"] > 1
    for name in ("train_results.json", "all_results.json", "arguments.json", "trainer_state.json"):
        assert (folder / name).is_file()
    config = json.loads((folder / "checkpoint-12" / "prefix_config.json").read_text(encoding="utf-8"))
    assert config["pre_seq_len"] == 5
    assert os.path.isabs(config["base_model"])
    assert config["max_source_length"] == 24


def test_a_checkpoint_holds_the_prefix_and_not_the_backbone(straight):
    folder, _ = straight
    tensors = prefix_of(folder / "checkpoint-12")
    assert set(tensors) == {"transformer.prefix_encoder.embedding.weight"}
    assert tensors["transformer.prefix_encoder.embedding.weight"].dtype == torch.float32
    sizes = sum(path.stat().st_size for path in (folder / "checkpoint-12").iterdir())
    assert sizes < 60_000  # three float32 copies of 5 x 192 numbers, and text


KILL_AT_STEP_9 = """
import os
from transformers import TrainerCallback
from ptuning.training.trainer import TuningTrainer
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9: os.kill(os.getpid(), 9)
start = TuningTrainer.__init__
def init(self, *args, **kwargs):
    start(self, *args, **kwargs); self.add_callback(Kill())
TuningTrainer.__init__ = init
"""


@pytest.mark.slow
@pytest.mark.parametrize("projection", [False, True])
def test_resuming_equals_a_run_without_a_stop_bit_for_bit(command, tmp_path, projection):
    """Seven steps, a kill, and on to twelve from the last checkpoint: weights, optimiser and log are the same."""
    settings = {"prefix_projection": projection, "save_steps": 7, "logging_steps": 1}
    train(command(tmp_path / "straight", **settings))
    argv = command(tmp_path / "killed", **settings)
    killed = Command(["train", *argv], tmp_path / "out", before=KILL_AT_STEP_9)
    assert killed.wait() == -9, killed.text()
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-7"]
    train([*argv, "--resume_from_checkpoint", "auto"])
    for name, tensor in prefix_of(tmp_path / "straight" / "checkpoint-12").items():
        assert torch.equal(tensor, prefix_of(tmp_path / "killed" / "checkpoint-12")[name]), name
    optimisers = [
        torch.load(tmp_path / run / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
        for run in ("straight", "killed")
    ]
    for index, state in optimisers[0].items():
        assert all(torch.equal(value, optimisers[1][index][key]) for key, value in state.items())
    straight, killed_log = (log_of(tmp_path / run / "checkpoint-12") for run in ("straight", "killed"))
    assert straight == killed_log


def test_answers_after_training_still_use_the_cache(command, tmp_path, golden):
    """transformers' Trainer switches it off; every token would then recompute the whole sequence."""
    arguments = parse_arguments(command(tmp_path / "run"), task="train")
    tokenizer = open_named(arguments.model).tokenizer
    rows = prepare_rows(arguments.data.train_file, arguments.data, None)
    examples = prepare_examples(tokenizer, rows, arguments.data, "rows")
    model = load_model(golden / "model", device="cpu", pre_seq_len=5)
    TuningTrainer(model, PREFIX, arguments.training, examples, TrainingCollator(tokenizer))
    assert model.config.use_cache is True


def test_a_tuned_folder_answers_without_any_flag(straight, golden):
    folder, _ = straight
    model = load_model(folder / "checkpoint-12", device="cpu")
    assert model.prefix_encoder.config.pre_seq_len == 5
    again = load_model(golden / "model", device="cpu", ptuning_checkpoint=folder / "checkpoint-12")
    ids = torch.tensor([[353, 86, 89, 100]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


@pytest.mark.slow
def test_the_published_form_is_written_on_request(command, tmp_path):
    train(command(tmp_path / "run", max_steps=1, prefix_format="both"))
    folder = tmp_path / "run" / "checkpoint-1"
    published = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in published.items()} == {
        name: tensor.tolist() for name, tensor in prefix_of(folder).items()
    }


@pytest.mark.slow
def test_length_grouping_checkpointing_and_bfloat16_run(command, tmp_path):
    for number, extra in enumerate(
        (
            {"group_by_length": True},
            {"gradient_checkpointing": True},
            {"dtype": "bfloat16"},
            {"bf16": True},
        )
    ):
        result = train(command(tmp_path / str(number), max_steps=2, **extra))
        assert 1 < result.train_metrics["train_loss"] < 20, extra


@pytest.mark.slow
def test_checkpointing_changes_no_weight(command, tmp_path):
    for name, checkpointing in (("plain", False), ("lean", True)):
        train(command(tmp_path / name, max_steps=3, gradient_checkpointing=checkpointing))
    plain, lean = (prefix_of(tmp_path / name / "checkpoint-3") for name in ("plain", "lean"))
    assert all(torch.equal(plain[name], lean[name]) for name in plain)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_backbone_trains(command, tmp_path, bits):
    result = train(command(tmp_path / "run", max_steps=2, quantization_bit=bits))
    config = json.loads((result.checkpoint / "prefix_config.json").read_text(encoding="utf-8"))
    assert config["quantization_bit"] == bits
    assert 1 < result.train_metrics["train_loss"] < 20


@pytest.mark.slow
def test_the_validation_loss_is_the_mean_over_its_rows(command, tmp_path, rows_file, golden):
    argv = command(tmp_path / "run", max_steps=2, do_eval=True, validation_file=rows_file, per_device_eval_batch_size=11)
    train(argv)
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    arguments = parse_arguments(argv, task="train")
    tokenizer = open_named(arguments.model).tokenizer
    examples = prepare_examples(tokenizer, prepare_rows(rows_file, arguments.data, None), arguments.data, "rows")
    model = load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path / "run" / "checkpoint-2")
    with torch.no_grad():
        expected = model(**TrainingCollator(tokenizer)(examples)).loss.item()
    assert results["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_several_processes_prepare_the_same_examples(command, tmp_path, rows_file):
    arguments = parse_arguments(command(tmp_path / "run"), task="train")
    tokenizer = open_named(arguments.model).tokenizer
    rows = prepare_rows(rows_file, arguments.data, None)
    alone = prepare_examples(tokenizer, rows, arguments.data, "rows")
    arguments.data.preprocessing_num_workers = 2
    assert prepare_examples(tokenizer, rows, arguments.data, "rows") == alone


@pytest.mark.slow
def test_training_again_into_a_used_folder_is_refused(command, straight, tmp_path):
    folder, _ = straight
    before = sorted(path.name for path in folder.iterdir())
    done = finished(["train", *command(folder)], tmp_path)
    assert done.returncode == 2
    assert "already holds a run, up to checkpoint-12" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre_seq_len": None}, "--pre_seq_len is missing"),
        ({"train_file": "nowhere.json"}, "nowhere.json"),
        ({"prompt_column": "contant"}, "contant"),
        ({"model_name_or_path": "./no/such/model"}, "model folder not found"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_written(command, tmp_path, change, words):
    argv = command(tmp_path / "run")
    for name, value in change.items():
        place = argv.index(f"--{name}")
        argv[place : place + 2] = [] if value is None else [f"--{name}", value]
    done = finished(["train", *argv], tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_kill_between_saving_and_deleting_leaves_no_checkpoint_too_many(command, straight, tmp_path):
    """The run is over, and what it should have deleted is still there: the same command deletes it."""
    shutil.copytree(straight[0], tmp_path / "run")
    train(command(tmp_path / "run", resume_from_checkpoint="auto", save_total_limit=2))
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


@pytest.mark.slow
def test_resuming_with_another_prefix_names_both(command, straight, tmp_path):
    folder, _ = straight
    shutil.copytree(folder, tmp_path / "run")
    done = finished(["train", *command(tmp_path / "run", pre_seq_len=7, resume_from_checkpoint="auto")], tmp_path)
    assert done.returncode == 2
    assert "a prefix of 5 tokens" in done.stderr
    assert "trains 7" in done.stderr


def test_dialogues_are_trained_round_by_round_beside_other_rows(command, tmp_path, rows_file):
    """Rows as turns, every reply learnt, a second file mixed in; and the prefix knows that it has seen histories."""
    talk = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    path = tmp_path / "talk.json"
    path.write_text("\n".join(json.dumps({"messages": talk}) for _ in range(4)), encoding="utf-8")
    settings = {"train_file": path, "mix_file": f"{rows_file}:0.2", "loss_on": "all", "legacy_first_round": True}
    argv = command(tmp_path / "run", max_steps=1, **settings)
    for flag in ("--prompt_column", "--response_column"):
        del argv[argv.index(flag) : argv.index(flag) + 2]
    result = train(argv)
    assert result.train_metrics["train_samples"] == 10  # 4 dialogues of 2 rounds, and a fifth of all from the other file
    config = json.loads((tmp_path / "run" / "checkpoint-1" / "prefix_config.json").read_text(encoding="utf-8"))
    assert (config["history"], config["legacy_first_round"]) == (True, True)
    assert load_model(tmp_path / "run" / "checkpoint-1", device="cpu").prompt_settings["legacy"] is True


@pytest.mark.slow
def test_label_smoothing_learns_the_replies_and_not_something_else(command, tmp_path, rows_file):
    """As good as no smoothing gives the same run; some smoothing gives the loss that plain torch gives for its prefix."""
    settings = {
        "max_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4,
        "eval_strategy": "steps", "eval_steps": 1, "validation_file": rows_file, "model_name_or_path": "tiny-chatglm",
    }  # fmt: skip
    for name, factor in (("plain", 0), ("hardly", 1e-9), ("much", 0.5)):
        train(command(tmp_path / name, label_smoothing_factor=factor, **settings))
    plain, hardly, much = (log_of(tmp_path / name / "checkpoint-2") for name in ("plain", "hardly", "much"))
    for one, other in zip(plain, hardly, strict=True):
        for key in ("loss", "eval_loss", "grad_norm"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-6)
    plain, much = ([entry for entry in log if "loss" in entry] for log in (plain, much))
    assert much[0]["loss"] > 1.2 * plain[0]["loss"]


def test_the_smoothed_loss_of_a_run_is_that_of_plain_torch(command, tmp_path):
    """The first step's loss, over two micro-batches, from logits of the whole sequences."""
    argv = command(tmp_path / "run", max_steps=1, logging_steps=1, label_smoothing_factor=0.3, prefix_dropout=0)
    batches, losses = [], []
    compute_loss = TuningTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            logits = model(**{key: inputs[key] for key in ("input_ids", "labels")}).logits[:, :-1].float()
        labels = inputs["labels"][:, 1:]
        scores, there = -torch.log_softmax(logits, -1), labels != -100
        exact = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        batches.append((float((0.7 * exact + 0.3 * scores.mean(-1))[there].sum()), int(there.sum())))
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        losses.append(float(loss.detach()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TuningTrainer, "compute_loss", watched)
        train(argv)
    assert len(batches) == 2
    assert sum(losses) == pytest.approx(sum(loss for loss, _ in batches) / sum(count for _, count in batches), rel=1e-5)
    assert log_of(tmp_path / "run" / "checkpoint-1")[0]["loss"] == pytest.approx(sum(losses), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0, 0.2])
def test_padding_that_is_learnt_has_the_loss_of_plain_torch(command, tmp_path, smoothing):
    """The published --ignore_pad_token_for_loss false: padding behind the reply is a text like any other."""
    folder = tmp_path / "run"
    argv = command(
        folder, max_steps=1, logging_steps=1, gradient_accumulation_steps=1, per_device_train_batch_size=4, prefix_dropout=0,
        ignore_pad_token_for_loss=False, label_smoothing_factor=smoothing,
    )  # fmt: skip
    found = []
    compute_loss = TuningTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].float()
        labels = inputs["labels"][:, 1:]
        assert (labels[:, -1] == 3).all()
        found.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing))
        return compute_loss(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TuningTrainer, "compute_loss", watched)
        train(argv)
    assert log_of(folder / "checkpoint-1")[0]["loss"] == pytest.approx(float(found[0]), rel=1e-5)
