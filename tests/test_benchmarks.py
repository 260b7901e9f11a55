"""Every benchmark runs with the smallest settings, does the same work on all sides, and ends in its JSON line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import finished

from benchmarks.__main__ import BENCHMARKS
from benchmarks.everything import NAMES, commands
from benchmarks.plain_habits import default_products, published_products

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "data" / "adgen-tiny" / "train.json"


@pytest.fixture
def run(tmp_path):
    """The JSON line of one benchmark: ``run(name, ...)``."""

    def results(*words, fresh=False):
        if fresh:
            command = [sys.executable, "-m", "benchmarks", *map(str, words)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        else:
            done = finished(words, tmp_path / "printed", module="benchmarks.__main__")
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["benchmark"] == words[0]
        assert {"machine", "commit", "settings", "results"} <= last.keys()
        return last["results"]

    return results


@pytest.mark.slow
def test_all_ways_of_a_training_step_agree(run):
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


@pytest.mark.parametrize("context", [default_products, lambda: published_products([])], ids=["peft", "published"])
def test_baselines_multiply_where_torch_does(context):
    """On a CPU where loading sends float32 products to oneDNN, the other sides of a benchmark do not go there."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        pytest.skip("this torch has no such setting")
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        with context():
            assert matmul.fp32_precision == "none"
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


@pytest.mark.slow
def test_peft_steps_on_the_same_rows_and_peaks_are_measured(run):
    pytest.importorskip("peft")
    results = run(
        "train", "--size", "tiny", "--batch", "1", "--steps", "1", "--prefix", "4", "--no-habits", "--peft",
        "--dtypes", "float32",
    )
    rows = {row["way"]: row for row in results["ways"]}
    assert list(rows) == ["published way", "ptuning, float32", "peft, transformers' GLM"]
    assert all(0.05 < row["peak GB"] < 5 for row in rows.values())
    assert rows["peft, transformers' GLM"]["loss of the first step"] > 0


@pytest.mark.slow
def test_half_precision_weights_keep_close_to_float32(run):
    float32, bfloat16 = run("half_loss", "--steps", "3", "--batch", "1", "--prefix", "4")
    assert len(float32["losses"]) == len(bfloat16["losses"]) == 3
    assert 0 < bfloat16["largest"] < 0.1


@pytest.mark.slow
def test_all_ways_of_generating_give_the_same_tokens(run):
    results = run(
        "generate", "--prompt", "8", "--new", "2", "--prefix", "3", "--batches", "1", "2", "--repeats", "1",
        "--bits", "0", "4",
    )
    assert [(row["way"], row["batch"]) for row in results[:6]] == [
        (way, batch) for batch in (1, 2) for way in ("published way", "our generate", "engine")
    ]
    assert len(results) == 12
    assert all(row["equal tokens"] == 1 and "of ceiling" in row for row in results)  # a time may be noise, even below 0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [[], ["--file", ROWS]])
def test_all_ways_of_an_evaluation_give_the_same_answers(run, rows):
    results = run(
        "evaluate", "--rows", "5", "--alone", "3", "--new", "6", "--prefix", "3", "--batches", "2", "8", "--repeats", "1",
        "--dtypes", "float32", *rows,
    )
    assert [row["rows"] for row in results] == [3, 3, 5, 5]
    assert all(row["equal answers"] == 1 and row["tokens/s"] > 0 for row in results)


@pytest.mark.slow
def test_serving(run):
    results = run(
        "serving", "--clients", "2", "--prefixes", "1", "2", "--prefix-length", "3", "--new", "3", "--alone", "1",
        "--repeats", "1",
    )
    assert results["equal answers"] == 1
    assert len(results["rows"]) == 3


@pytest.mark.slow
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


@pytest.mark.slow
def test_growth_measures_every_axis_and_draws_it_the_same_each_time(run, tmp_path):
    from benchmarks.plots import draw_growth

    results = run(
        "growth", "--prompts", "8", "16", "--batches", "1", "2", "--prefix-lengths", "1", "2", "--prefixes", "1", "2",
        "--prefix-rows", "2", "--repeats", "1", "--plots", tmp_path,
    )
    axes = ["prompt length", "batch", "prefix length", "number of prefixes"]
    assert [row["what grows"] for row in results["rows"]] == [axis for axis in axes for _ in range(2)]
    assert list(results["fits"]) == axes
    drawn = (tmp_path / "growth.svg").read_bytes()
    assert draw_growth(results["rows"], tmp_path / "again").read_bytes() == drawn
    assert b"number of prefixes" in drawn


def test_exponents_and_flags_of_growth():
    from benchmarks.growth import add_exponents, fit

    rows = [{"size": size, "prompt ms": 10.0 * size**2, "step ms": 10.0 * size} for size in (1, 2, 4)]
    add_exponents(rows)
    assert [row["flag"] for row in rows] == ["", "reading 2.00", "reading 2.00"]
    assert fit(rows) == pytest.approx({"reading": 2.0, "decoding": 1.0})
    for row in rows:
        row["attention ms"] = row["prompt ms"] - 10.0 * row["size"]  # attention itself may be quadratic
    add_exponents(rows)
    assert [row["flag"] for row in rows] == ["", "", ""]


@pytest.mark.slow
def test_startup_reaches_the_prompt_and_the_first_step(run):
    results = run("startup", "--repeats", "1", "--goals", "1000", "1000", "1000", fresh=True)
    modules = {row["start"]: row["heavy modules"] for row in results}
    assert modules["ptuning --help"] == []
    assert "torch" in modules["ptuning chat, first prompt"]
    used_elsewhere = {"jieba", "nltk", "rouge_chinese", "datasets", "gradio", "matplotlib"}
    assert not used_elsewhere & set(modules["ptuning chat, first prompt"])
    assert used_elsewhere <= {*modules["everything imported at once"], "gradio"}
    assert all(row["median s"] > 0 for row in results)


@pytest.mark.slow
def test_profile_names_operators_of_both_steps(run):
    results = run(
        "profile_step", "--size", "tiny", "--steps", "1", "--prefix", "4", "--batch", "1", "--rows", "2", "--top", "3",
        fresh=True,  # a profiler in a forked process sees no operators
    )
    steps = [row["step"] for row in results]
    assert steps == ["training step"] * 5 + ["decode step"] * 5
    assert any("mm" in row["operator"] for row in results)
    for step in set(steps):
        shares = [row["share"] for row in results if row["step"] == step]
        assert sum(shares[:-1]) == pytest.approx(1.0)


def test_recorded_lines_fill_their_marks_and_nothing_else(tmp_path, capsys):
    from benchmarks import record

    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- evaluate -->\nold\n<!-- /evaluate -->\nbetween\n<!-- train -->\nkept\n<!-- /train -->\nafter\n"
    )
    machine = {"cpu": "A", "capability": "AVX2", "threads": 2, "torch": "2", "load": 0.1}
    row = {"way": "published way", "dtype": "float32", "rows": 3, "tokens/s": 12.345, "equal answers": 1.0}
    line = {
        "benchmark": "evaluate", "command": "evaluate --file /somewhere/rows.json", "machine": machine, "commit": "abc",
        "settings": {}, "results": [row],
    }
    (tmp_path / "lines").write_text(json.dumps(line) + "\n")
    assert record.main([str(tmp_path / "lines"), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- evaluate -->\n`bash scripts/benchmark.sh evaluate --file rows.json` (A, AVX2,")
    assert "| way | dtype | rows | tokens/s | equal answers |" in text
    assert "| published way | float32 | 3 | 12.3 | 1 |\n<!-- /evaluate -->\nbetween\n<!-- train -->\nkept\n" in text
    assert text.endswith("after\n")
    assert "old" not in text
    assert record.main([str(tmp_path / "lines"), "--page", str(page)]) == 0
    assert page.read_text() == text
    served = {**line, "benchmark": "serving", "results": {"rows": [row], "equal answers": 1}}
    (tmp_path / "lines").write_text(json.dumps(served))
    assert record.main([str(tmp_path / "lines"), "--page", str(page)]) == 1
    assert "no place for: serving" in capsys.readouterr().out


def test_the_page_has_a_place_for_everything_that_all_measures():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in (*NAMES, "decode_6b", "profile_step"):
        assert page.count(f"<!-- {name} -->\n") == page.count(f"<!-- /{name} -->") == 1, name
