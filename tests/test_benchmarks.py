"""Every benchmark runs with the smallest settings, does the same work on all sides, and ends in its JSON line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.everything import NAMES, commands

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "data" / "adgen-tiny" / "train.json"


def run(*words):
    """The JSON line of one benchmark."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, words)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["benchmark"] == words[0]
    assert {"machine", "commit", "settings", "results"} <= last.keys()
    return last["results"]


def test_all_ways_of_a_training_step_agree():
    results = run(
        "train", "--size", "tiny", "--batch", "2", "--steps", "1", "--prefix", "8", "--bits", "4", "--no-peft", "--no-peaks",
        "--dtypes", "float32", "--rows", ROWS,
    )
    ways = [row["way"] for row in results["ways"]]
    assert ways[0] == "published way"
    assert sum("without" in way for way in ways) == 5
    assert {"ptuning, float32", "published way, INT4", "ptuning, INT4, float32"} <= set(ways)
    assert all(row["of ceiling"] > 0 for row in results["ways"] if "INT4" not in row["way"])
    for check in results["checks"]:
        assert check["loss"] < 1e-4
        assert check["gradient"] < 1e-3
        assert check["equal"]
    losses = {row["way"]: row["loss of the first step"] for row in results["ways"]}
    assert losses["published way"] != losses["published way, INT4"]  # the weights did change


def test_peft_steps_on_the_same_rows_and_peaks_are_measured():
    pytest.importorskip("peft")
    results = run(
        "train", "--size", "tiny", "--batch", "1", "--steps", "1", "--prefix", "4", "--no-habits", "--peft",
        "--dtypes", "float32",
    )
    rows = {row["way"]: row for row in results["ways"]}
    assert list(rows) == ["published way", "ptuning, float32", "peft, transformers' GLM"]
    assert all(0.05 < row["peak GB"] < 5 for row in rows.values())
    assert rows["peft, transformers' GLM"]["loss of the first step"] > 0


def test_half_precision_weights_keep_close_to_float32():
    float32, bfloat16 = run("half_loss", "--steps", "3", "--batch", "1", "--prefix", "4")
    assert len(float32["losses"]) == len(bfloat16["losses"]) == 3
    assert 0 < bfloat16["largest"] < 0.1


def test_all_ways_of_generating_give_the_same_tokens():
    results = run(
        "generate", "--prompt", "8", "--new", "2", "--prefix", "3", "--batches", "1", "2", "--repeats", "1",
        "--bits", "0", "4",
    )
    assert [(row["way"], row["batch"]) for row in results[:6]] == [
        (way, batch) for batch in (1, 2) for way in ("published way", "our generate", "engine")
    ]
    assert len(results) == 12
    assert all(row["equal tokens"] == 1 and row["of ceiling"] > 0 for row in results)


@pytest.mark.parametrize("rows", [[], ["--file", ROWS]])
def test_all_ways_of_an_evaluation_give_the_same_answers(rows):
    results = run(
        "evaluate", "--rows", "5", "--alone", "3", "--new", "6", "--prefix", "3", "--batches", "2", "8", "--repeats", "1",
        "--dtypes", "float32", *rows,
    )
    assert [row["rows"] for row in results] == [3, 3, 5, 5]
    assert all(row["equal answers"] == 1 and row["tokens/s"] > 0 for row in results)


def test_serving():
    results = run(
        "serving", "--clients", "2", "--prefixes", "1", "2", "--prefix-length", "3", "--new", "3", "--alone", "1",
        "--repeats", "1",
    )
    assert results["equal answers"] == 1
    assert len(results["rows"]) == 3


def test_a_benchmark_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capfd):
    from benchmarks import everything

    asked = {"train": ["train", "--steps", "x"], "half_loss": ["half_loss", "--steps", "1", "--batch", "1", "--prefix", "2"]}
    monkeypatch.setattr(everything, "commands", lambda *_: asked)
    assert everything.main(["--output", str(tmp_path / "lines.jsonl")]) == 1
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["benchmark"] for line in lines] == ["half_loss"]
    assert lines[0]["command"] == "half_loss --steps 1 --batch 1 --prefix 2"
    assert "failed: train\n" in capfd.readouterr().err


@pytest.mark.parametrize("size", ["tiny", "mid", "6b"])
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_all_are_understood(size, name, capsys):
    """The argument parser of each takes what ``all`` gives it (``--help`` behind it ends the program there)."""
    import importlib

    words = commands(size, "cpu", (name,), "rows.json")[name]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main([*words[1:], "--help"])
    assert ended.value.code == 0
    assert f"benchmark.sh {name}" in capsys.readouterr().out


def test_every_name_has_its_module():
    for name in BENCHMARKS:
        assert (ROOT / "benchmarks" / f"{'everything' if name == 'all' else name}.py").is_file(), name
