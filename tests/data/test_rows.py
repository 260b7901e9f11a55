"""Reading rows: every file form gives the same rows, and every mistake is named with its place."""

import csv
import json
import logging
from pathlib import Path

import pytest

from ptuning.core.errors import UserError
from ptuning.data.row_files import read_records
from ptuning.data.rows import Row, read_rows

RECORDS = [
    {"prompt": "你好", "response": "您好，\n世界", "history": []},
    {"prompt": "第二问", "response": "a \"b\" c, d", "history": [["你好", "您好"], ["q", "a\tb"]]},
    {"prompt": " 三 ", "response": "\\n 不是换行", "history": None},
]
COLUMNS = {"prompt_column": "prompt", "response_column": "response", "history_column": "history"}


def as_json(records, **options) -> str:
    return json.dumps(records, ensure_ascii=False, **options)


LINES = "\n".join(as_json(record) for record in RECORDS)
JSON_FORMS = {
    "lines": LINES,
    "lines-end": LINES + "\n\n",
    "lines-blank-between": "\n" + LINES.replace("\n", "\n  \n"),
    "lines-crlf": LINES.replace("\n", "\r\n") + "\r\n",
    "lines-bom": "\ufeff" + LINES,
    "escaped": "\n".join(json.dumps(record) for record in RECORDS),
    "array": as_json(RECORDS),
    "array-pretty": as_json(RECORDS, indent=2),
    "array-pretty-crlf-bom": "\ufeff" + as_json(RECORDS, indent=4).replace("\n", "\r\n"),
    "objects-pretty": "\n".join(as_json(record, indent=2) for record in RECORDS),
    "objects-one-line": " ".join(as_json(record) for record in RECORDS),
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def expected_rows(sources: list[str]) -> list[Row]:
    return [
        Row(r["prompt"], r["response"], [(q, a) for q, a in r["history"] or []], source)
        for r, source in zip(RECORDS, sources, strict=True)
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON"])
@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_forms_read_equal(tmp_path, form, suffix):
    path = write(tmp_path / f"train{suffix}", JSON_FORMS[form])
    rows = read_rows(path, **COLUMNS)
    assert rows == expected_rows([row.source for row in rows])
    assert all(row.source.startswith(f"{path}:") for row in rows)
    assert (rows.total, rows.dropped) == (3, {})


def test_lines_are_numbered_from_one(tmp_path):
    lines = read_rows(write(tmp_path / "a.json", JSON_FORMS["lines-blank-between"]), **COLUMNS)
    pretty = read_rows(write(tmp_path / "b.json", JSON_FORMS["array-pretty"]), **COLUMNS)
    assert [row.source.rpartition(":")[2] for row in lines] == ["2", "4", "6"]
    numbers = [i for i, line in enumerate(JSON_FORMS["array-pretty"].split("\n"), 1) if line == "  {"]
    assert [int(row.source.rpartition(":")[2]) for row in pretty] == numbers


def test_csv(tmp_path):
    path = tmp_path / "train.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["history", "prompt", "response", "id"])
        for i, record in enumerate(RECORDS):
            history = "" if record["history"] is None else as_json(record["history"])
            writer.writerow([history, record["prompt"], record["response"], i])
    assert read_rows(path, **COLUMNS) == expected_rows([f"{path}:2", f"{path}:4", f"{path}:5"])
    assert [row.prompt for row in read_rows(path, prompt_column="id")] == ["0", "1", "2"]  # no guessing of types


def test_csv_with_a_very_long_field(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,response\r\n" + "长" * 200_000 + ",短\r\n")
    assert len(read_rows(path, prompt_column="prompt", response_column="response")[0].prompt) == 200_000


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    assert read_rows(path, **COLUMNS) == expected_rows([f"{path}:row {i}" for i in (1, 2, 3)])


def test_columns_that_were_not_asked_for_are_none(tmp_path):
    rows = read_rows(write(tmp_path / "a.json", LINES), prompt_column="response")
    assert rows[0] == Row("您好，\n世界", None, None, f"{tmp_path / 'a.json'}:1")


def test_absent_history_is_a_first_round(tmp_path, caplog):
    path = write(tmp_path / "a.json", '{"prompt": "q", "response": "a"}')
    assert read_rows(path, **COLUMNS)[0].history == []
    assert "no row has the history column 'history'" in caplog.text
    with pytest.raises(UserError, match=r"column 'history' not in .*\(has: histroy\)\. Did you mean 'histroy'\?"):
        read_rows(write(tmp_path / "b.json", '{"prompt": "q", "response": "a", "histroy": []}'), **COLUMNS)


def test_max_samples_counts_rows_as_read(tmp_path):
    path = write(tmp_path / "a.json", '{"prompt": "", "response": "a"}\n' + LINES + "\n{broken")
    rows = read_rows(path, **COLUMNS, max_samples=3)
    assert [row.prompt for row in rows] == ["你好", "第二问"]
    assert rows.total == 3
    with pytest.raises(UserError, match="is 0; allowed: 1 or more"):
        read_rows(path, **COLUMNS, max_samples=0)


def test_empty_texts_are_dropped_counted_and_reported(tmp_path, caplog):
    records = [*RECORDS, {"prompt": "q", "response": ""}, {"prompt": "q"}, {"prompt": " \n", "response": "a"}]
    records += [{"prompt": None, "response": None}]
    path = write(tmp_path / "train.json", "\n".join(as_json(record) for record in records))
    with caplog.at_level(logging.WARNING):
        rows = read_rows(path, **COLUMNS)
    assert len(rows) == 3
    assert rows.dropped == {"empty response": 2, "empty prompt": 1, "empty prompt and response": 1}
    assert f"dropped 4 of 7 rows: 2 empty response (first: {path}:4), 1 empty prompt (first: {path}:6)" in caplog.text


def test_no_row_left(tmp_path):
    path = write(tmp_path / "a.json", '{"prompt": "", "response": "a"}\n{"prompt": "a", "response": " "}')
    with pytest.raises(UserError, match=r"a\.json: no usable row, dropped 2 of 2 rows: 1 empty prompt"):
        read_rows(path, **COLUMNS)


BROKEN_JSON = {
    '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "b"\n{"prompt": "c", "response": "d"}': r":2:32: ",
    '{"prompt": "a", "response": "b"}\n\n{"prompt": "a",  }\n{"prompt": "a", "response": "b"}': r":3:18: unexpected }",
    '{"prompt": "他说"好"", "response": "b"}': r":1:16: unexpected 好",
    '{"prompt": "a\nb", "response": "c"}': r":1:14: unexpected end of line",
    '{"prompt": "a", "response": "b"': r":1:32: unexpected end of file",
    '[\n {"prompt": "a", "response": "b"}\n {"prompt": "a", "response": "b"}\n]': r":3:2: unexpected \{ \(Expect",
    '[{"prompt": "a", "response": "b"}': r":1:34: unexpected end of file",
    '[{"prompt": "a", "response": "b"}]\nrest': r":2:1: unexpected r \(Extra data",
    '[{"prompt": "a", "response": "b"},]': r":1:35: unexpected \]",
    "prompt,response\na,b": r":1:1: unexpected p",
    "{'prompt': 'a'}": r":1:2: unexpected '",
    '{\n  "prompt": "a",\n  "response" "b"\n}': r":3:14: unexpected \"",
    '{"prompt": "a", "response": "b"},\n{"prompt": "a", "response": "b"}': r":1:33: unexpected ,",
}


@pytest.mark.parametrize("text", BROKEN_JSON)
def test_broken_json_is_named_with_line_and_column(tmp_path, text):
    with pytest.raises(UserError, match=r"train\.json" + BROKEN_JSON[text]):
        read_rows(write(tmp_path / "train.json", text), **COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": "b"}\n"text"', r":2:1: a row must be an object .*but this is a text"),
        ("[[1, 2]]", r":1:2: a row must be an object .*a list"),
        ("3", r":1:1: a row must be an object"),
        ("[]", "no rows in this file"),
        (' \n\t"', "unexpected"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_json_without_objects(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / "train.json", text), **COLUMNS)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b" \r\n"])
def test_empty_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: empty file"):
        read_rows(tmp_path / name, **COLUMNS)


@pytest.mark.parametrize(("encoding", "guess"), [("gbk", "GBK"), ("utf-16", "UTF-16"), ("gb18030", "GBK|GB18030")])
def test_wrong_encoding_is_named_and_guessed(tmp_path, encoding, guess):
    path = tmp_path / "train.json"
    path.write_bytes("\n".join(['{"prompt": "ok", "response": "ok"}'] * 96 + [LINES]).encode(encoding))
    line = 1 if encoding == "utf-16" else 97
    with pytest.raises(UserError, match=rf"train\.json:{line}: invalid UTF-8 .*like ({guess}).*iconv -f ({guess})"):
        read_rows(path, **COLUMNS)


def test_files_that_are_not_there_or_not_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"file not found: data/train\.json \(working directory {tmp_path}\)"):
        read_rows("data/train.json", **COLUMNS)
    with pytest.raises(UserError, match=r"is a folder; give one file"):
        read_rows(tmp_path, **COLUMNS)
    with pytest.raises(UserError, match=r"not \.txt"):
        read_rows(write(tmp_path / "a.txt", LINES), **COLUMNS)
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_rows(write(tmp_path / "a.json", "version https://git-lfs.github.com/spec/v1\n"), **COLUMNS)
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        read_rows(write(tmp_path / "a.parquet", LINES), **COLUMNS)


def test_missing_column_names_what_there_is(tmp_path):
    path = write(tmp_path / "train.json", '{"content": "a", "summaty": "b", "history": []}')
    message = r"column 'summary' not in .*train\.json \(has: content, summaty, history\)\. Did you mean 'summaty'\?"
    with pytest.raises(UserError, match=message):
        read_rows(path, prompt_column="content", response_column="summary")
    with pytest.raises(UserError, match=r"column 'prompt' not in .*\(has: content.*--prompt_column"):
        read_rows(path, prompt_column="prompt")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": 3, "response": "a"}, r"a\.json:1: column 'prompt' must be a text, but holds a number \(3\)"),
        ({"prompt": "q", "response": ["a"]}, r"column 'response' must be a text, but holds a list"),
        ({"prompt": "q", "response": True}, r"'response' must be a text, but holds a truth value"),
        ({"prompt": "q", "response": "a", "history": "早"}, r"'history' must be a list of \[query, reply\] pairs"),
        ({"prompt": "q", "response": "a", "history": [["q"]]}, r"a\.json:1: entry 0 of column 'history' must be"),
        ({"prompt": "q", "response": "a", "history": [["q", "a"], ["q", None]]}, r"entry 1 of column 'history'"),
        ({"prompt": "q", "response": "a", "history": [{"q": "a"}]}, r"entry 0 .*an object"),
    ],
)
def test_values_of_the_wrong_type(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / "a.json", as_json(record)), **COLUMNS)


def test_a_separator_cuts_every_row_alike(tmp_path):
    """A comma inside one name is no separator where the row after it has none."""
    path = tmp_path / "rows.csv"
    path.write_text("content;summary;note, x\n你好;好的;c\n", encoding="utf-8")
    (row,) = read_rows(path, prompt_column="content", response_column="summary")
    assert (row.prompt, row.response) == ("你好", "好的")
    path.write_text('content,summary\n"你;好","a;b"\n', encoding="utf-8")
    (row,) = read_rows(path)
    assert (row.prompt, row.response) == ("你;好", "a;b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,response\na,b\n\nc,d,e\n", r"a\.csv:4: 3 fields, but the header names 2 \(prompt, response\)"),
        ('prompt,response\na,"b\nc,d\n', r"a\.csv:3: not valid CSV"),
        ('prompt,response\na,"b"c"\n', r"a\.csv:2: not valid CSV"),
        ("prompt;response\na;b;c\n", r"a\.csv:2: 3 fields, but the header names 2 .* put texts with semicolons"),
        ("prompt，response\na，b\n", r"column 'prompt' not in .*has: prompt，response"),
        ("prompt,response\n", "no rows in this file"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / "a.csv", text), **COLUMNS)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.csv", "prompt;response\n你好;a,b\n", "semicolons"),
        ("a.csv", "prompt\tresponse\n你好\ta,b\n", "tabs"),
        ("a.csv", "prompt|response\n你好|a,b\n", "bars"),
        ("a.tsv", "prompt\tresponse\n你好\ta,b\n", "tabs"),
        ("a.tsv", 'prompt,response\n你好,"a,b"\n', None),
        ("a.csv", '"prompt";"response"\n"你好";"a,b"\n', "semicolons"),
        ("a.csv", "sep=;\r\nprompt;response\r\n你好;a,b\r\n", "semicolons"),
        ("a.csv", '"a;b",prompt,response\n1,你好,"a,b"\n', None),
        ("a.csv", "\n\n prompt , response\n你好,\"a,b\"\n", None),
    ],
)
def test_tables_with_other_separators_are_read_and_it_is_said(tmp_path, caplog, name, text, what):
    caplog.set_level(logging.INFO)
    rows = read_rows(write(tmp_path / name, text))
    assert [(row.prompt, row.response) for row in rows] == [("你好", "a,b")]
    assert int(rows[0].source.rpartition(":")[2]) == text.rstrip().count("\n") + 1
    assert (f"fields separated by {what}" in caplog.text) == (what is not None)


INVISIBLE = (
    "\u200b", "\ufeff", "\u2060\u00ad", "\x07", "\u3164", "\u2800\u3000", "\ufe0f", "\u2028", "\ufffd", "\u202e", "\udc00",
)  # fmt: skip


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_a_text_of_which_nothing_can_be_seen_is_empty(tmp_path, text):
    records = [*RECORDS, {"prompt": text, "response": "a"}, {"prompt": "q", "response": text * 3}]
    path = write(tmp_path / "a.json", "\n".join(json.dumps(record) for record in records))
    rows = read_rows(path, **COLUMNS)
    assert len(rows) == 3
    assert rows.dropped == {"empty prompt": 1, "empty response": 1}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write(tmp_path / "b.json", "\n".join(json.dumps({"messages": each}) for each in (turns, good)))
    assert read_rows(path).dropped == {"empty reply": 1}


@pytest.mark.parametrize("text", ["a\u200bb", "👍🏽", "é", "\u0301", "中\ufe0f", "🏳️\u200d🌈", "\ue000", "。"], ids=ascii)
def test_what_can_be_seen_stays_as_it_is(tmp_path, text):
    path = write(tmp_path / "a.json", as_json({"prompt": text, "response": text}))
    rows = read_rows(path)
    assert (rows[0].prompt, rows[0].response, rows.dropped, rows.changed) == (text, text, {}, {})


def test_halves_of_characters_are_mended_and_counted(tmp_path, caplog):
    """They come from broken JSON escapes; no tokenizer takes them, and no UTF-8 file."""
    history = [["\udc00早", "b"]]
    records = [{"prompt": "a\ud800b", "response": "\ud83d\ude00", "history": history}, *RECORDS]
    path = write(tmp_path / "a.json", "\n".join(json.dumps(record) for record in records))
    rows = read_rows(path, **COLUMNS)
    assert (rows[0].prompt, rows[0].response, rows[0].history) == ("a\ufffdb", "😀", [("\ufffd早", "b")])
    assert list(rows.changed.values()) == [1]
    assert f"1 halves of characters (lone surrogates) replaced by \ufffd (first: {path}:1)" in caplog.text
    whole = {"prompt": "\ud83d\ude00", "response": "a"}
    assert read_rows(write(tmp_path / "b.json", json.dumps(whole))).changed == {}


def test_bytes_in_parquet_are_texts_where_they_can_be(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    texts = ["你好", "a", "你好"]
    for kind in (pyarrow.binary(), pyarrow.large_binary()):
        columns = {"prompt": pyarrow.array([text.encode() for text in texts], kind), "response": texts}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        assert [row.prompt for row in read_rows(path)] == texts
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [text.encode("gbk") for text in texts], "response": texts}), path)
    with pytest.raises(UserError, match=r"row 1: column 'prompt' must be a text, but holds bytes that are no UTF-8 text"):
        read_rows(path)
    assert [row.prompt for row in read_rows(path, encoding="gbk")] == texts


def test_parquet_gives_the_same_rows_whatever_it_holds_twice(tmp_path):
    """Texts are read as dictionaries; nulls, other types and several row groups come through."""
    pyarrow = pytest.importorskip("pyarrow")
    records = [
        {"prompt": f"q{n % 5}" if n % 7 else None, "response": f"a{n}", "number": n, "list": [{"x": "y"}]}
        for n in range(500)
    ]
    table = pyarrow.Table.from_pylist(records)
    for number, dictionary in enumerate((True, False)):
        path = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=90, use_dictionary=dictionary)
        assert [record for _, record in read_records(path)] == records
    encoded = table.set_column(0, "prompt", table["prompt"].dictionary_encode())
    pyarrow.parquet.write_table(encoded, path)
    assert [record for _, record in read_records(path)] == records
