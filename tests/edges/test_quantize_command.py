"""``ptuning quantize`` as users type it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import GOLDEN

import ptuning
from ptuning.edges.cli import main
from ptuning.edges.quantize import split_words

MODEL = str(GOLDEN / "model")
ROOT = Path(__file__).resolve().parents[2]


def run(*argv):
    return main(["quantize", *map(str, argv)])


@pytest.mark.slow
def test_a_command_line_makes_a_model_that_talks(tmp_path):
    command = [sys.executable, "-m", "ptuning", "quantize", MODEL, str(tmp_path / "q4"), "--bits", "4", "--embeddings"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "INT4 with quantised embeddings" in done.stdout
    assert "quantising" in done.stderr  # the progress bar
    config = json.loads((tmp_path / "q4" / "config.json").read_text())
    assert (config["quantization_bit"], config["quantization_embeddings"]) == (4, True)
    model, tokenizer = ptuning.load_model(tmp_path / "q4", device="cpu"), ptuning.load_tokenizer(tmp_path / "q4")
    assert model.config.quantization_embeddings is True
    assert model.chat(tokenizer, "你好", max_length=12, do_sample=False)[1]


def test_flags_settings_file_and_other_spellings(tmp_path, capsys):
    (tmp_path / "q.yaml").write_text(f"model_name_or_path: {MODEL}\nbits: 8\nformat: bin\n")
    assert run(tmp_path / "q.yaml", "--output_dir", tmp_path / "a") == 0
    assert (tmp_path / "a" / "pytorch_model.bin").is_file()
    assert run(tmp_path / "q.yaml", MODEL, tmp_path / "b", "--max-shard-size", "50KB", "format=safetensors") == 0
    assert (tmp_path / "b" / "model.safetensors.index.json").is_file()
    assert run(MODEL, tmp_path / "b", "--quantization_bit", "4", "--overwrite") == 0
    assert "INT4" in capsys.readouterr().out.splitlines()[-1]
    assert ptuning.load_model(tmp_path / "b", device="cpu").config.quantization_bit == 4


def test_calibration_by_flags(tmp_path, capsys):
    rows = ROOT / "data" / "adgen-tiny" / "dev.json"
    settings = ["--calibration_file", rows, "--prompt_column", "content", "--response_column", "summary"]
    limits = ["--calibration_rows", "6", "--max_target_length", "32", "--no_act_order"]
    assert run(MODEL, tmp_path / "q", "--bits", "4", "--method", "gptq", *settings, *limits) == 0
    shown = capsys.readouterr()
    assert "INT4, calibrated" in shown.out
    assert "calibrating" in shown.err
    report = json.loads((tmp_path / "q" / "calibration.json").read_text())
    assert (report["calibration_rows"], report["act_order"]) == (6, False)
    assert ptuning.load_model(tmp_path / "q", device="cpu").config.quantization_bit == 4
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "SRC is missing"),
        (["m"], "DST is missing"),
        ([MODEL, "t"], "--bits is missing; allowed are 4 and 8"),
        ([MODEL, "t", "--bits", "5"], "'5' is not one of 4, 8"),
        ([MODEL, "t", "u", "--bits", "4"], "'u': not expected here"),
        ([MODEL, "t", "--bit", "4"], "did you mean --bits"),
        (["no/such/model", "t", "--bits", "4"], "no/such/model"),
        ([MODEL, MODEL, "--bits", "4"], "is the source itself"),
        ([MODEL, "t", "--bits", "4", "--max_shard_size", "much"], "size 'much'"),
        ([MODEL, "t", "--bits", "4", "--method", "gptq"], "--calibration_file is missing"),
        ([MODEL, "t", "--bits", "4", "--method", "gptq", "--calibration_file", "no.txt"], "no.txt"),
    ],
)
def test_mistakes_are_one_line(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_words_before_the_flags():
    assert split_words(["a", "b", "--bits", "4"]) == ([], ["a", "b"], ["--bits", "4"])
    assert split_words(["q.yaml", "./a=b", "bits=4"]) == (["q.yaml"], ["./a=b"], ["bits=4"])
    assert split_words(["-h"]) == ([], [], ["-h"])
