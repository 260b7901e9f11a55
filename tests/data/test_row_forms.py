"""Alpaca, sharegpt and messages rows: found by their keys or named, and what of them cannot be used."""

import json
import logging

import pytest

from ptuning.core.choices import RowFormat, values_of
from ptuning.core.errors import UserError
from ptuning.data.rows import Row, every_round, mixed, read_rows


def write(path, records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def read(tmp_path, *records, **options):
    return read_rows(write(tmp_path / "r.json", records), **options)


def turns(*pairs, keys=("role", "content")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


DIALOGUE = (("user", "一问"), ("assistant", "一答"), ("user", "二问"), ("assistant", "二答"))
HUMAN = [({"user": "human", "assistant": "gpt"}[role], text) for role, text in DIALOGUE]
# The same two rounds in every form; the columns form is what the others are held against.
FORMS = {
    "columns": {"prompt": "二问", "response": "二答", "history": [["一问", "一答"]]},
    "alpaca": {"instruction": "二问", "input": "", "output": "二答", "history": [["一问", "一答"]]},
    "sharegpt": {"id": 7, "conversations": turns(*HUMAN, keys=("from", "value"))},
    "sharegpt of ChatGLM3": {"conversations": turns(*DIALOGUE)},
    "messages": {"messages": turns(*DIALOGUE)},
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_row(tmp_path, form, named):
    name = form.split()[0]
    options = {"row_format": name} if named and name != "columns" else {}
    rows = read(tmp_path, FORMS[form], **options)
    assert rows == [Row("二问", "二答", [("一问", "一答")], f"{tmp_path / 'r.json'}:1")]
    assert (rows.form, rows.columns) == (name, tuple(FORMS[form]))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"content": "a", "summary": "b"}, ("a", "b", None)),
        ({"prompt": "a", "response": "b", "history": None}, ("a", "b", [])),
        ({"query": "a", "response": "b"}, ("a", "b", None)),
        ({"question": "a", "answer": "b"}, ("a", "b", None)),
        ({"instruction": "a", "input": "x", "output": "b"}, ("a\nx", "b", None)),
        ({"instruction": "", "input": "x", "output": "b"}, ("x", "b", None)),
        ({"messages": turns(("user", "a"), ("assistant", "b"))}, ("a", "b", [])),
        ({"messages": json.dumps(turns(("user", "a"), ("assistant", "b")))}, ("a", "b", [])),  # as tables have it
        ({"messages": turns(("User", [{"type": "text", "text": "a"}]), ("assistant", "b"))}, ("a", "b", [])),
    ],
)
def test_forms_are_found_by_their_keys(tmp_path, record, expected):
    row = read(tmp_path, record)[0]
    assert (row.prompt, row.response, row.history) == expected


def test_columns_that_are_named_win(tmp_path):
    record = {"messages": [], "content": "a", "summary": "b", "other": "c"}
    row = read(tmp_path, record, prompt_column="other", response_column="summary")[0]
    assert (row.prompt, row.response) == ("c", "b")


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "问", "output": "答", "system": "你是导购"},
        {"messages": turns(("system", "你是导购"), ("user", "问"), ("assistant", "答"))},
        {"messages": turns(("developer", "你是导购"), ("user", "问"), ("assistant", "答"))},
        {"system": "你是导购", "conversations": turns(("human", "问"), ("gpt", "答"), keys=("from", "value"))},
    ],
)
def test_system_text_is_kept_apart(tmp_path, record):
    row = read(tmp_path, record)[0]
    assert (row.system, row.prompt, row.response) == ("你是导购", "问", "答")


GOOD = {"messages": turns(("user", "q"), ("assistant", "a"))}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "empty dialogue"),
        (None, "empty dialogue"),
        (turns(("user", "q")), "no reply"),
        (turns(("system", "s")), "no reply"),
        (turns(("assistant", "a"), ("user", "q"), ("assistant", "a")), "starts with a reply"),
        (turns(("user", "q"), ("user", "q"), ("assistant", "a")), "two questions in a row"),
        (turns(("user", "q"), ("assistant", "a"), ("assistant", "a")), "two replies in a row"),
        (turns(("user", "q"), ("system", "s"), ("assistant", "a")), "system text after the first question"),
        (turns(("user", "q"), ("observation", "x"), ("assistant", "a")), "tool or function turns"),
        ([*turns(("user", "q")), {"role": "assistant", "content": None, "tool_calls": [1]}], "tool or function turns"),
        (turns(("user", [{"type": "image_url"}]), ("assistant", "a")), "images or other parts that are not text"),
        (turns(("user", " "), ("assistant", "a")), "empty question"),
        (turns(("user", "q"), ("assistant", None)), "empty reply"),
    ],
)
def test_dialogues_without_a_place_in_the_prompt_are_counted(tmp_path, caplog, bad, reason):
    with caplog.at_level(logging.WARNING):
        rows = read(tmp_path, GOOD, {"messages": bad})
    assert (len(rows), rows.total, rows.dropped) == (1, 2, {reason: 1})
    assert f"dropped 1 of 2 rows: 1 {reason} (first: {tmp_path / 'r.json'}:2)" in caplog.text
    with pytest.raises(UserError, match=f"no usable row.*{reason}"):
        read(tmp_path, {"messages": bad})


def test_a_last_question_without_a_reply_is_left_out_and_counted(tmp_path, caplog):
    rows = read(tmp_path, {"messages": turns(*DIALOGUE, ("user", "三问"))})
    assert (rows[0].prompt, rows[0].response) == ("二问", "二答")
    assert rows.changed == {"last question without a reply left out": 1}
    assert "changed 1 of 1 rows: 1 last question without a reply left out (first:" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": {"a": 1}}, r"r\.json:1: column 'messages' must be a list of turns .*but holds an object"),
        ({"messages": "hello"}, r"must be a list of turns .*'hello'"),
        ({"messages": ["q", "a"]}, r"r\.json:1: turn 1 of 'messages' must be an object .*but is a text \('q'\)"),
        ({"messages": [{"text": "q"}]}, r"turn 1 of 'messages' has no role \(has: text\)"),
        ({"messages": turns(("usr", "q"))}, r"turn 1 .*role 'usr'; allowed are user .*did you mean 'user'"),
        ({"messages": turns((3, "q"))}, r"turn 1 .*role 3; allowed are user"),
        ({"messages": [{"role": "user", "value": "q"}]}, r"turn 1 .*has no 'content' \(has: role, value\)"),
        ({"messages": turns(("user", "q"), ("assistant", 5))}, r"turn 2 .*'content' must be a text, but holds a number"),
        ({"conversations": turns(("human", {}), keys=("from", "value"))}, r"'value' must be a text, but holds an object"),
        ({"instruction": ["q"], "output": "a"}, r"r\.json:1: column 'instruction' must be a text, but holds a list"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, r"entry 0 of column 'history' must be a pair"),
    ],
)
def test_malformed_rows_are_errors_with_their_place(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, record)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"a": "q", "b": "r"}, {}, r"no known form of rows \(has: a, b\); name the columns with --prompt_column"),
        ({"a": "q"}, {"row_format": "columns"}, r"no known form of rows"),
        ({"mesages": []}, {"row_format": "messages"}, r"'messages' not in .*has: mesages\)\. Did you mean 'mesages'\?"),
        ({"content": "q"}, {"row_format": "sharegpt"}, r"'conversations' not in .*not rows of --row_format sharegpt"),
        ({"instruction": "q", "outptu": "a"}, {"row_format": "alpaca"}, r"'output' not in .*Did you mean 'outptu'"),
        ({"content": "q"}, {"row_format": "csv"}, r"--row_format csv: allowed are auto, columns, alpaca"),
    ],
)
def test_a_form_that_does_not_fit(tmp_path, record, options, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, record, **options)


def test_every_form_has_a_name_in_the_settings():
    from ptuning.settings.arguments import DataArguments

    for name in values_of(RowFormat):
        assert DataArguments(row_format=name).row_format == name


def test_every_round_becomes_a_row_with_the_rounds_before_it(tmp_path, caplog):
    three = turns(*DIALOGUE, ("user", "三问"), ("assistant", "三答"))
    with caplog.at_level(logging.INFO, "ptuning"):
        rows = every_round(read(tmp_path, {"messages": [*turns(("system", "s")), *three]}, GOOD))
    at = f"{tmp_path / 'r.json'}"
    assert rows == [
        Row("一问", "一答", [], f"{at}:1 round 0", "s"),
        Row("二问", "二答", [("一问", "一答")], f"{at}:1 round 1", "s"),
        Row("三问", "三答", [("一问", "一答"), ("二问", "二答")], f"{at}:1 round 2", "s"),
        Row("q", "a", [], f"{at}:2"),
    ]
    assert rows.per_round
    assert "2 rows became 4" in caplog.text


def test_rounds_with_nothing_to_learn_are_counted(tmp_path, caplog):
    history = [["一问", ""], ["二问", "二答"]]
    rows = every_round(read(tmp_path, {"prompt": "三问", "response": "三答", "history": history}))
    assert [row.prompt for row in rows] == ["二问", "三问"]
    assert rows.dropped == {"rounds with an empty question or reply": 1}
    assert "r.json:1 round 0" in caplog.text


def numbered(tmp_path, name, count):
    return read_rows(write(tmp_path / name, [{"content": f"{name} {i}", "summary": "b"} for i in range(count)]))


@pytest.mark.parametrize(("share", "expected"), [(0.2, 10), (0.5, 40), (0.01, 1), (0.9, 360)])
def test_mixed_rows_make_up_their_share(tmp_path, share, expected):
    rows, others = numbered(tmp_path, "a.json", 40), numbered(tmp_path, "b.json", 400)
    result = mixed(rows, others, share, seed=1)
    drawn = [row.prompt for row in result if row.prompt.startswith("b")]
    assert len(drawn) == len(set(drawn)) == expected
    assert sorted(row.prompt for row in result if row.prompt.startswith("a")) == sorted(row.prompt for row in rows)
    assert result == mixed(rows, others, share, seed=1)
    assert result != mixed(rows, others, share, seed=2)


def test_a_small_file_is_mixed_in_several_times(tmp_path, caplog):
    result = mixed(numbered(tmp_path, "a.json", 40), numbered(tmp_path, "b.json", 3), 0.2, seed=1)
    drawn = [row.prompt for row in result if row.prompt.startswith("b")]
    assert (len(drawn), len(set(drawn))) == (10, 3)
    assert "10 rows are needed and the file has 3: its rows are used up to 4 times" in caplog.text
