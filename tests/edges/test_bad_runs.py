"""The table of mistakes, second part: settings, models, checkpoints, runs to go on with, predictions to score."""

import json
import shutil

import pytest
from checkpoints import GOLDEN, whole_checkpoint
from test_bad_inputs import COLUMNS, EVALUATE, GOOD, ROW, TRAIN, Bad, check

RUN = f"{TRAIN} --train_file {{rows}} {COLUMNS}"
ROWS = {"r.json": GOOD}
MODEL, PREFIX = GOLDEN / "model", GOLDEN / "checkpoint-prefix"


def setting(what, more, *words):
    """A flag that does not fit."""
    return Bad(what, f"{RUN} {more}", words, ROWS)


def copy_of(source, name, change=lambda folder: None):
    """Puts a copy of a golden folder into the folder of the case, changed."""

    def prepare(folder):
        shutil.copytree(source, folder / name)
        change(folder / name)

    return prepare


def rewrite(name, edit):
    """Changes a JSON file of a folder."""

    def change(folder):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(edit(values)), encoding="utf-8")

    return change


def shorten(name):
    """Cuts a file in half."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])


SETTINGS = [
    setting("misspelt flag", "--learning_rat 1", "--learning_rat", "did you mean --learning_rate"),
    setting("a word for a number", "--max_steps many", "--max_steps", "many"),
    setting("bits that do not exist", "--quantization_bit 3", "'3' is not one of 0, 4, 8"),
    setting("prefix of length 0", "--pre_seq_len 0", "--pre_seq_len 0", "must be 1 or more"),
    setting("unknown device", "--device gpu0", "--device gpu0", "cuda:N"),
    setting("unknown number format", "--dtype float8", "float8", "bfloat16"),
    setting("dropout of everything", "--prefix_dropout 1", "--prefix_dropout 1", "below 1"),
    setting("early stopping without evaluations", "--early_stopping_patience 3", "--eval_strategy steps"),
    setting("no patience", "--early_stopping_patience 0", "must be 1 or more"),
    setting("an unknown reporting package", "--report_to tensorbord", "tensorbord", "tensorboard"),
    setting("two ways to start", "--init_from a --ptuning_checkpoint b", "--init_from a", "give one"),
    setting("evaluations without rows", "--do_train --do_eval", "--validation_file", "needs rows"),
    setting("predictions without rows", "--do_train --do_predict", "--test_file", "needs rows"),
    Bad("no output folder", f"train --train_file {{rows}} {COLUMNS} --model_name_or_path tiny-chatglm --pre_seq_len 4",
        ("--output_dir FOLDER is missing",), ROWS),
    Bad("no prefix", f"{RUN.replace('--pre_seq_len 4', '')}", ("--pre_seq_len is missing", "128"), ROWS),
    Bad("unknown verb", "trian --x", ("ptuning trian", "did you mean train")),
    Bad("settings file that is missing", "train gone.yaml", ("gone.yaml",)),
    Bad("settings file that is broken", "train {rows}", ("s.yaml:3:1",), {"s.yaml": "a: 1\nb: [\n"}),
    Bad("settings file with an unknown name", "train {rows}", ("s.json", "learning_rat", "learning_rate"),
        {"s.json": json.dumps({"learning_rat": 1})}),
]  # fmt: skip

MODELS = [
    Bad("missing model", RUN.replace("tiny-chatglm", "./gone"), ("./gone", "not found"), ROWS),
    Bad("weights cut short", RUN.replace("tiny-chatglm", "./m"), ("incomplete or damaged",), ROWS,
        copy_of(MODEL, "m", shorten("model.safetensors"))),
    Bad("no weights", RUN.replace("tiny-chatglm", "./m"), ("m",), ROWS,
        copy_of(MODEL, "m", lambda folder: (folder / "model.safetensors").unlink())),
    Bad("tokenizer is a pointer", RUN.replace("tiny-chatglm", "./m"), ("ice_text.model", "Git LFS pointer"), ROWS,
        copy_of(MODEL, "m", lambda folder: (folder / "ice_text.model").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"))),
    Bad("ChatGLM2", RUN.replace("tiny-chatglm", "./m"), ("ChatGLM2",), ROWS,
        copy_of(MODEL, "m", rewrite("config.json", lambda values: values | {
            "multi_query_attention": True, "ffn_hidden_size": 64, "kv_channels": 8}))),
    Bad("broken config.json", RUN.replace("tiny-chatglm", "./m"), ("config.json",), ROWS,
        copy_of(MODEL, "m", lambda folder: (folder / "config.json").write_text("{"))),
]  # fmt: skip

PREFIXES = [
    Bad("missing checkpoint", f"{EVALUATE} {{rows}} {COLUMNS} --ptuning_checkpoint ./gone", ("./gone",), ROWS),
    Bad("checkpoint of another model", f"{EVALUATE} {{rows}} {COLUMNS} --ptuning_checkpoint ./p", ("p", "layers"), ROWS,
        copy_of(PREFIX, "p")),
    Bad("checkpoint cut short", f"{EVALUATE} {{rows}} {COLUMNS} --ptuning_checkpoint ./p", ("incomplete or damaged",), ROWS,
        copy_of(PREFIX, "p", shorten("pytorch_model.bin"))),
    Bad("wrong length", f"{EVALUATE} {{rows}} {COLUMNS} --ptuning_checkpoint ./p --pre_seq_len 99".replace(
        "tiny-chatglm", str(MODEL)), ("you passed 99",), ROWS, copy_of(PREFIX, "p")),
    Bad("an empty folder for a checkpoint", f"{EVALUATE} {{rows}} {COLUMNS} --ptuning_checkpoint ./p", ("p",),
        ROWS | {"p": None}),
    Bad("all checkpoints of no run", "evaluate p --all_checkpoints", ("--all_checkpoints", "no whole checkpoint-N"),
        {"p": None}),
]  # fmt: skip

RESUMING = [
    Bad("a folder in use", RUN, ("out", "--overwrite_output_dir", "--resume_from_checkpoint auto"), ROWS,
        lambda folder: whole_checkpoint(folder / "out", 7)),
    Bad("a file for an output folder", RUN, ("out", "this is a file"), ROWS | {"out": "x"}),
    Bad("nothing to resume", f"{RUN} --resume_from_checkpoint true", ("no whole checkpoint-N",), ROWS),
    Bad("resuming from what is no checkpoint", f"{RUN} --resume_from_checkpoint ./p",
        ("no trainer_state.json", "--init_from"), ROWS | {"p": None}),
    Bad("resuming from half a checkpoint", f"{RUN} --resume_from_checkpoint out/checkpoint-7", ("is cut short",),
        ROWS | {"out/checkpoint-7/trainer_state.json": '{"glob'}),
]  # fmt: skip

RESCORING = [
    Bad("rescoring a missing file", "evaluate --metrics-only gone.txt", ("gone.txt",)),
    Bad("rescoring rows", "evaluate --metrics-only {rows}", ("r.json:1",), {"r.json": ROW}),
    Bad("rescoring half a file", "evaluate --metrics-only {rows}", ("r.txt:2",),
        {"r.txt": '{"labels": "a", "predict": "b"}\n{"labels": "a", "pre'}),
    Bad("rescoring nothing", "evaluate --metrics-only {rows}", ("r.txt",), {"r.txt": ""}),
]  # fmt: skip

CASES = [*SETTINGS, *MODELS, *PREFIXES, *RESUMING, *RESCORING]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_a_mistake_is_one_message_and_nothing_is_written(case, tmp_path, monkeypatch, capfd):
    check(case, tmp_path, monkeypatch, capfd)
