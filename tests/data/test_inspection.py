"""What `ptuning inspect` finds in a file."""

import json
import re
from pathlib import Path

import pytest

from ptuning.checkpoint.load import load_tokenizer
from ptuning.data.inspection import inspect_file
from ptuning.edges.cli import main
from ptuning.settings.arguments import DataArguments

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(golden):
    return load_tokenizer(golden / "model")


def write(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def pairs(*texts):
    return [{"content": prompt, "summary": reply} for prompt, reply in texts]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    many = [("问" * (i + 1), "答" * 10) for i in range(96)]
    rows = pairs(*many, ("重", "一"), ("重 ", "一"), ("重", "二"), ("", "空"))
    return write(tmp_path_factory.mktemp("rows") / "train.json", rows)


def test_lengths_cuts_and_suggestions(tokenizer, train):
    data = DataArguments(train_file=train, max_source_length=64, max_target_length=16)
    found = inspect_file(tokenizer, data)
    needed = sorted(len(tokenizer.encode_text(row.prompt)) + 1 for row in found.rows)
    assert found.prompt_lengths["longest"] == needed[-1]
    assert found.prompt_lengths["p50"] == needed[len(needed) // 2]
    assert found.cut == {"earlier rounds": 0, "prompt": sum(length > 64 for length in needed), "reply": 0}
    # With the suggested limits (nearly) nothing is cut.
    again = inspect_file(tokenizer, DataArguments(train_file=train, **found.suggested))
    assert again.cut == {"earlier rounds": 0, "prompt": 0, "reply": 0}
    assert found.suggested["max_source_length"] < needed[-1] + 8
    assert found.rows.dropped == {"empty content": 1}


def test_suggestions_fit_the_model(tokenizer, tmp_path):
    train = write(tmp_path / "long.json", pairs(("问" * 3000, "答" * 3000), ("a", "b")))
    suggested = inspect_file(tokenizer, DataArguments(train_file=train)).suggested
    assert sum(suggested.values()) <= 2048


def test_one_very_long_row_does_not_decide_alone(tokenizer, tmp_path):
    train = write(tmp_path / "a.json", pairs(*[("问" * 10, "答" * 10)] * 400, ("问" * 900, "答")))
    assert inspect_file(tokenizer, DataArguments(train_file=train)).suggested["max_source_length"] == 16


def test_duplicates_in_the_file_and_with_the_test_rows(tokenizer, train, tmp_path):
    test = write(tmp_path / "test.json", pairs((" 重", "一"), ("重", "三"), ("新", "一")))
    found = inspect_file(tokenizer, DataArguments(train_file=train, test_file=test))
    assert (found.duplicates.rows, found.duplicates.prompts) == (1, 1)
    assert found.duplicates.first == f"{train}:98 = {train}:97"
    assert (found.overlap.rows, found.overlap.same_prompt, found.overlap.same_row) == (3, 2, 1)
    assert found.overlap.first == f"{test}:1 = {train}:97"


def test_the_same_question_after_other_rounds_is_no_duplicate(tokenizer, tmp_path):
    rows = [{"prompt": "好", "response": "a", "history": history} for history in ([], [["x", "y"]])]
    assert inspect_file(tokenizer, DataArguments(train_file=write(tmp_path / "r.json", rows))).duplicates.rows == 0


def test_samples_show_what_bears_the_loss_and_what_was_cut(tokenizer, tmp_path):
    rows = [
        {"prompt": "短问", "response": "短答", "history": []},
        {"prompt": "短问", "response": "短答", "history": [["一", "二"]] * 9},
        {"prompt": "长" * 60, "response": "短答", "history": []},
        {"prompt": "短问", "response": "长" * 60, "history": []},
    ]
    data = DataArguments(train_file=write(tmp_path / "r.json", rows), max_source_length=30, max_target_length=20)
    found = inspect_file(tokenizer, data, samples=4)
    whole, rounds, prompt, reply = found.samples
    assert (whole.context, whole.learnt, whole.remark) == ("短问[gMASK]", "<sop> 短答<eop>", "")
    assert whole.learnt_tokens == len(tokenizer.encode_text("短答")) + 2
    assert "oldest rounds left out" in rounds.remark
    assert "truncated to 30" in prompt.remark
    assert "truncated, without an end token" in reply.remark
    assert not reply.learnt.endswith("<eop>")
    assert len(inspect_file(tokenizer, data, samples=0).samples) == 0


def test_the_command_prints_a_table(train, capsys):
    assert main(["inspect", train, "--max_source_length", "64", "--examples", "2"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "99 rows of the form columns; columns content, summary",
        "left out  1 empty content",
        "counted with tiny-chatglm",
        "ChatGLM-6B's counts differ",
        "suggested: --max_source_length",
        "1 rows repeat an earlier one",
        "问[gMASK]»<sop>",
        "<eop>«",
    ):
        assert words in shown
    assert "\033" not in shown


def test_the_command_prints_json_and_loads_no_weights(train, golden, capsys, tmp_path):
    folder = tmp_path / "only a tokenizer"
    folder.mkdir()
    for name in ("ice_text.model", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((golden / "model" / name).read_bytes())
    assert main(["inspect", train, "--model", str(folder), "--json", "--test_file", train]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["rows_read"], found["dropped"]) == (99, 100, {"empty content": 1})
    assert found["tokenizer"] == str(folder)
    assert found["test"]["same_row"] == 99
    assert set(found["prompt_lengths"]) == {"p50", "p90", "p95", "p99", "longest"}
    assert found["suggested"]["max_target_length"] == 16


def test_the_page_on_data_shows_what_the_command_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    command, shown = re.search(r"^\$ ptuning (inspect .*)\n((?:.*\n)*?)```", page, flags=re.M).groups()
    assert main(command.split()) == 0
    assert capsys.readouterr().out == shown
