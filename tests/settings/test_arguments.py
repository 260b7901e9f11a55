"""Limits and defaults of the model's and the data's settings."""

import subprocess
import sys

import pytest

from ptuning.core.errors import UserError
from ptuning.settings.arguments import DataArguments, ModelArguments
from ptuning.settings.parsing import SettingsParser


def test_defaults_are_the_published_ones():
    data = DataArguments()
    assert (data.max_source_length, data.max_target_length, data.val_max_target_length) == (1024, 128, 128)
    assert data.ignore_pad_token_for_loss is True
    assert data.source_prefix == ""
    model = ModelArguments()
    assert (model.pre_seq_len, model.prefix_projection, model.quantization_bit) == (None, False, None)
    assert model.model_revision == "main"


def test_zero_bits_is_a_value_of_its_own():
    assert ModelArguments(quantization_bit=0).quantization_bit == 0
    assert ModelArguments().quantization_bit is None


def test_evaluation_length_follows_the_training_length_unless_given():
    assert DataArguments(max_target_length=64).val_max_target_length == 64
    assert DataArguments(max_target_length=64, val_max_target_length=32).val_max_target_length == 32


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_devices_that_exist_are_accepted(device):
    assert ModelArguments(device=device).device == device


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ModelArguments, "quantization_bit", 3),
        (ModelArguments, "pre_seq_len", 0),
        (ModelArguments, "pre_seq_len", -1),
        (ModelArguments, "device", "gpu"),
        (ModelArguments, "device", "cuda:"),
        (ModelArguments, "dtype", "half"),
        (DataArguments, "max_source_length", 1),
        (DataArguments, "max_target_length", 2),
        (DataArguments, "val_max_target_length", 0),
        (DataArguments, "max_train_samples", 0),
        (DataArguments, "max_eval_samples", -5),
        (DataArguments, "max_predict_samples", 0),
        (DataArguments, "preprocessing_num_workers", 0),
        (DataArguments, "num_beams", 0),
        (DataArguments, "generation", "random"),
    ],
)
def test_a_bad_value_is_refused_with_its_flag_and_value(kind, name, value):
    with pytest.raises(UserError, match=f"--{name} {value}"):
        kind(**{name: value})


def test_layer_zero_needs_no_heavy_library():
    code = (
        "import sys, ptuning.settings.arguments, ptuning.settings.parsing\n"
        "heavy = {'torch', 'transformers', 'datasets', 'jieba', 'nltk', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_truncated_replies_is_the_clearer_name_of_cut_replies(tmp_path, capsys):
    parser = SettingsParser({"rows": DataArguments}, prog="x", description="y")
    for words in (["--truncated_replies", "drop"], ["--cut_replies=drop"], ["truncated-replies=drop"]):
        assert parser.parse(words).values == {"cut_replies": "drop"}
    (tmp_path / "a.json").write_text('{"truncated_replies": "no"}')
    with pytest.raises(UserError, match=r"a.json:1: --cut_replies: 'no' is not one of open, drop, closed"):
        parser.parse([str(tmp_path / "a.json")])
    with pytest.raises(SystemExit):
        parser.parse(["--help"])
    assert "--truncated_replies open|drop|closed, --cut_replies" in capsys.readouterr().out
