"""``ptuning info``: a table or a line of JSON, from config.json alone."""

import json

import pytest
from checkpoints import GOLDEN, golden_config, make_checkpoint, write_json

from ptuning.edges.cli import main
from ptuning.memory.estimates import Storage, weight_bytes
from ptuning.model.sizes import ModelSizes

MODEL = str(GOLDEN / "model")


def info(capsys, *argv):
    assert main(["info", *map(str, argv)]) == 0
    return capsys.readouterr().out


def values(capsys, *argv):
    return json.loads(info(capsys, *argv, "--json"))


def test_a_table_for_people(capsys):
    shown = info(capsys, MODEL, "--device", "cpu", "--quantization_bit", "4")
    assert "3 layers of 32" in shown
    assert "INT4, " in shown
    assert "answering, 1 rows of 2048 tokens" in shown
    for name in ("weights", "cache", "activations", "total", "while loading"):
        assert name in shown


def test_json_adds_up_and_needs_no_weights(capsys, tmp_path):
    write_json(tmp_path / "config.json", golden_config(torch_dtype="float32"))
    found = values(capsys, tmp_path, "--device", "cpu", "--max_length", "100", "--batch_size", "2")
    assert found["total"] == sum(found["parts"].values())
    assert (found["use"], found["dtype"], found["quantization_bit"]) == ("answering", "float32", 0)
    assert found["parts"]["weights"] == weight_bytes(ModelSizes.from_config(golden_config()), Storage())
    assert found["parts"]["cache"] == 2 * 4 * 3 * 2 * 100 * 32


def test_tuning_with_a_new_prefix_or_a_checkpoint(capsys):
    flags = ["--train", "--per_device_train_batch_size", "2", "--max_source_length", "16", "--max_target_length", "8"]
    new = values(capsys, MODEL, "--device", "cpu", *flags, "--pre_seq_len", "6")
    assert (new["use"], new["pre_seq_len"]) == ("tuning", 6)
    assert new["parts"]["optimiser"] == 2 * new["parts"]["prefix"] == 8 * 6 * 2 * 3 * 32
    own = values(capsys, MODEL, "--device", "cpu", *flags, "--ptuning_checkpoint", GOLDEN / "checkpoint-prefix_projection")
    assert own["pre_seq_len"] > 0
    assert own["parts"]["optimiser"] > 8 * own["pre_seq_len"] * 2 * 3 * 32
    more = ["--pre_seq_len", "6", "--gradient_checkpointing", "--gradient_accumulation_steps", "4"]
    shown = info(capsys, MODEL, *flags, *more)
    assert "tuning, 2 x 4 rows of 16 + 8 tokens, gradient checkpointing" in shown


def test_quantised_folders_and_shared_heads(capsys, tmp_path):
    folder = make_checkpoint(tmp_path / "q", config={"quantization_bit": 4, "quantization_embeddings": True})
    found = values(capsys, folder, "--device", "cpu")
    assert (found["quantization_bit"], found["quantization_embeddings"]) == (4, True)
    whole = values(capsys, MODEL, "--device", "cpu")["parts"]["weights"]
    bare = tmp_path / "shared"
    bare.mkdir()
    write_json(bare / "config.json", golden_config(torch_dtype="float32"))
    (bare / "pytorch_model.bin").write_bytes(b"0" * (whole - 704 * 32 * 4))
    assert values(capsys, bare, "--device", "cpu")["parts"]["weights"] == whole - 704 * 32 * 4


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no/such"], "no/such"),
        ([MODEL, "--train"], "--pre_seq_len is missing"),
        ([MODEL, "--quantization_bit", "5"], "not one of"),
        ([MODEL, "--max_length", "0"], "must be 1 or more"),
        ([MODEL, "--model_name_or_path", "x"], "name one model"),
        ([MODEL, "--trian"], "did you mean --train"),
    ],
)
def test_mistakes_are_one_line(argv, says, capsys):
    assert main(["info", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert len(error.splitlines()) == 1
