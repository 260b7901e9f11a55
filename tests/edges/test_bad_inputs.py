"""One table of mistakes that users make, each through the real command line.

Every case ends with exit code 2 and one line on standard error that names the place and the remedy; nothing is written.
A case is a :class:`Bad`: what it is, the command line, the words the message must hold, and the files it needs. Cases of
other parts of the program (training, checkpoints, settings) go into a list of their own, added to ``CASES`` below.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from ptuning.edges.cli import main

ROW = '{"content": "类型#裙", "summary": "好看的裙子"}'
GOOD = "\n".join([ROW] * 4)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 123\n"
# Which file, which model: what most cases have in common. {rows} is the file of a case.
TRAIN = "train --model_name_or_path tiny-chatglm --pre_seq_len 4 --max_steps 1 --device cpu --output_dir out"
COLUMNS = "--prompt_column content --response_column summary"
TRAIN_ROWS = f"{TRAIN} --train_file {{rows}}"
EVALUATE = "evaluate --model_name_or_path tiny-chatglm --device cpu --output_dir out --test_file"


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Attributes:
        what: a name for it, which is the name of the test.
        command: the command line; ``{rows}`` is the first of ``files``.
        words: what the message must hold, in any order.
        files: name → content (text is written as UTF-8, None makes a folder).
        prepare: makes more in the folder where the command runs.
    """

    what: str
    command: str
    words: tuple[str, ...]
    files: dict[str, str | bytes | None] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None


def row_file(what: str, content: str | bytes | None, *words: str, name: str = "rows.json", more: str = COLUMNS) -> Bad:
    """A mistake in the training file."""
    return Bad(what, f"{TRAIN_ROWS} {more}", words, {name: content})


def messages(*turns: object) -> str:
    return json.dumps({"messages": turns}, ensure_ascii=False)


USER = {"role": "user", "content": "问"}

FILES = [
    Bad("missing file", f"{TRAIN} {COLUMNS} --train_file data/nowhere.json", ("data/nowhere.json", "working directory")),
    row_file("a folder for a file", None, "is a folder", "give one file"),
    row_file("empty file", "", "rows.json: empty file (0 bytes)", "give a file with rows"),
    row_file("nothing but a byte order mark", b"\xef\xbb\xbf\n", "rows.json: empty file"),
    row_file("an empty array", "[]", "rows.json: no rows in this file", "a row is an object"),
    row_file("Git LFS pointer", POINTER, "rows.json", "Git LFS pointer", "git lfs pull"),
    row_file("a text file", GOOD, "rows.txt", ".json", ".csv", ".parquet", name="rows.txt"),
    row_file("an Excel sheet", b"PK\x03\x04" + bytes(50), "rows.json", "Excel", "save the sheet as .csv"),
    row_file("compressed", b"\x1f\x8b\x08" + bytes(50), "rows.json", "gzip", "unpack"),
    row_file("a web page", "<!DOCTYPE html><html></html>", "rows.json", "web page", "download the raw file"),
    row_file("parquet named json", b"PAR1" + bytes(50), "rows.json", "parquet", "ends in .parquet"),
    row_file("json named parquet", GOOD, "rows.parquet", "not a readable parquet file", name="rows.parquet"),
    row_file("GBK", (GOOD + "\n").encode("gbk"), "rows.json:1", "invalid UTF-8", "GBK", "--encoding gbk", "iconv"),
    row_file("UTF-16", GOOD.encode("utf-16"), "rows.json:1", "UTF-16", "--encoding utf-16"),
    row_file("one GBK line", f"{GOOD}\n".encode() + ROW.encode("gbk"), "rows.json:5", "this line looks like GBK"),
    row_file("wrong encoding flag", GOOD.encode("gbk"), "rows.json:1", "not ascii", "--encoding gbk",
             more=f"{COLUMNS} --encoding ascii"),
    row_file("csv in GBK", "content,summary\n类型,裙子\n".encode("gbk"), "rows.csv:2", "--encoding gbk", name="rows.csv"),
]  # fmt: skip

BROKEN = [
    row_file("truncated", GOOD[:-9], "rows.json:4:", "unexpected end of file", "truncated"),
    row_file("array truncated", f"[{ROW},\n{ROW}", "rows.json:2:", "unexpected end of file"),
    row_file("missing comma", '{"content": "a" "summary": "b"}', "rows.json:1:17", "correct this row"),
    row_file("unescaped quotes", '{"content": "他说"好"", "summary": "b"}', "rows.json:1:17", '\\"'),
    row_file("line break in a text", '{"content": "a\nb", "summary": "c"}', "rows.json:1:", "end of line", "\\n"),
    row_file("single quotes", "{'content': 'a'}", "rows.json:1:2", "unexpected '"),
    row_file("trailing comma", f"[{ROW},\n]", "rows.json:2:1", "unexpected ]"),
    row_file("a list for a row", f'{ROW}\n["a", "b"]', "rows.json:2:1", "a row must be an object", "a list"),
    row_file("csv with too many fields", "content,summary\na,b,c\n", "rows.csv:2", "3 fields", "double quotes",
             name="rows.csv"),
    row_file("csv with a column twice", "content,summary,content\na,b,c\n", "rows.csv:1", "'content' twice",
             name="rows.csv"),
]  # fmt: skip

COLUMNS_AND_TYPES = [
    row_file("a slip in the file", '{"content": "a", "summaty": "b"}', "'summary' not in", "content, summaty",
             "Did you mean 'summaty'?"),
    row_file("a slip in the flag", GOOD, "'contant' not in", "has: content, summary", "'content'?",
             more="--prompt_column contant --response_column summary"),
    row_file("a slip in the history column", '{"content": "a", "summary": "b", "histroy": []}', "'history'", "'histroy'?",
             more=f"{COLUMNS} --history_column history"),
    row_file("only one column named", GOOD, "--response_column is missing", "summary", more="--prompt_column content"),
    row_file("only the reply named", GOOD, "--prompt_column is missing", more="--response_column summary"),
    row_file("only the history named", GOOD, "--prompt_column is missing", more="--history_column history"),
    row_file("no column named and no known form", '{"a": "b", "c": "d"}', "no known form", "a, c", "--prompt_column",
             more=""),
    row_file("a number for a text", '{"content": 3, "summary": "b"}', "rows.json:1", "'content' must be a text", "quotes"),
    row_file("a list for a text", f'{ROW}\n{{"content": "a", "summary": ["b"]}}', "rows.json:2", "'summary' must be a text"),
    row_file("a history of texts", '{"content": "a", "summary": "b", "history": ["c"]}', "rows.json:1", "entry 0",
             "[query, reply]", more=f"{COLUMNS} --history_column history"),
    row_file("nothing but empty replies", '{"content": "a", "summary": ""}', "no usable row", "1 empty summary",
             "rows.json:1"),
    row_file("nothing but empty prompts", '{"content": " ", "summary": "b"}', "no usable row", "1 empty content"),
]  # fmt: skip

FORMS = [
    row_file("not the named form", GOOD, "'messages' not in", "--row_format messages", more="--row_format messages"),
    row_file("a form that does not exist", GOOD, "--row_format", "jsonl", "sharegpt", more="--row_format jsonl"),
    row_file("a form and a column", GOOD, "--row_format alpaca", "--prompt_column content", "leave one out",
             more=f"{COLUMNS} --row_format alpaca"),
    row_file("columns without their names", GOOD, "--prompt_column is missing", more="--row_format columns"),
    row_file("alpaca without output", '{"instruction": "a", "ouput": "b"}', "'output' not in", "Did you mean 'ouput'?",
             more="--row_format alpaca"),
    row_file("an unknown role", messages({"role": "usr", "content": "q"}), "rows.json:1", "turn 1", "'usr'", "'user'",
             more=""),
    row_file("a turn without text", messages({"role": "user"}), "rows.json:1", "turn 1", "no 'content'", more=""),
    row_file("a turn with a number", messages({"role": "user", "content": 1}), "turn 1", "must be a text", more=""),
    row_file("turns that are texts", messages("q", "a"), "rows.json:1", "turn 1", "must be an object", more=""),
    row_file("no dialogue with a reply", messages(USER), "no usable row", "1 no reply", "rows.json:1", more=""),
    row_file("dialogues in the wrong order", messages({"role": "assistant", "content": "a"}), "1 starts with a reply",
             more=""),
]  # fmt: skip


def flag(what: str, flags: str, *words: str, files: dict[str, str | bytes | None] | None = None) -> Bad:
    """A mistake in a flag, with a good training file."""
    return Bad(what, f"{TRAIN_ROWS} {COLUMNS} {flags}", words, {"rows.json": GOOD, **(files or {})})


LIMITS_AND_FLAGS = [
    flag("no room for a prompt", "--max_source_length 1", "--max_source_length 1", "2 or more"),
    flag("no room for a reply", "--max_target_length 2", "--max_target_length 2", "3 or more"),
    flag("a limit that is no number", "--max_source_length long", "max_source_length", "'long'", "whole number"),
    flag("no rows at all", "--max_train_samples 0", "--max_train_samples 0", "1 or more"),
    flag("no processes", "--preprocessing_num_workers 0", "--preprocessing_num_workers 0", "1 or more"),
    flag("an unknown truncation", "--truncation left", "truncation", "'left'", "smart", "published"),
    flag("an unknown way with replies", "--cut_replies no", "cut_replies", "'no'", "open, drop, closed"),
    flag("an unknown loss", "--loss_on first", "loss_on", "'first'", "last, all"),
    flag("an unknown encoding", "--encoding gkb", "--encoding gkb", "no such encoding", "gbk"),
    flag("every reply too long", "--cut_replies drop --max_target_length 3", "no row left", "--max_target_length 3"),
    flag("a slip in a flag", "--max_source_lenght 9", "--max_source_lenght", "did you mean --max_source_length"),
    flag("a mix without a share", "--mix_file other.json", "--mix_file other.json", "FILE:SHARE", "general.json:0.2"),
    flag("a mix of nothing", "--mix_file rows.json:0", "--mix_file rows.json:0", "between 0 and 1"),
    flag("a mix of everything", "--mix_file rows.json:1", "--mix_file rows.json:1", "between 0 and 1"),
    flag("a mix that is no number", "--mix_file rows.json:much", "--mix_file rows.json:much", "FILE:SHARE"),
    flag("a mix that is not there", "--mix_file gone.json:0.5", "gone.json", "working directory"),
    flag("a mix that is broken", "--mix_file mix.json:0.5", "mix.json:1:2", files={"mix.json": "{'a'}"}),
    flag("a mix without a form", "--mix_file mix.json:0.5", "mix.json", "no known form", files={"mix.json": '{"a": "b"}'}),
    flag("a broken validation file", "--do_train --do_eval --validation_file dev.json", "dev.json:1:1",
         files={"dev.json": "x"}),
    flag("a broken test file", "--do_train --do_predict --test_file test.json", "test.json:2:13", "no closing quote",
         "truncated", files={"test.json": ROW + '\n{"content": "'}),
]  # fmt: skip

OTHER_VERBS = [
    Bad("evaluating a missing file", f"{EVALUATE} gone.json", ("gone.json", "working directory")),
    Bad("evaluating without a column", f"{EVALUATE} {{rows}} --prompt_column content", ("--response_column",),
        {"r.json": ROW}),
    Bad("evaluating another column", f"{EVALUATE} {{rows}} --prompt_column content --response_column sumary",
        ("'sumary' not in", "'summary'?"), {"r.json": ROW}),
    Bad("inspecting nothing", "inspect", ("FILE is missing", "ptuning inspect train.json")),
    Bad("inspecting a missing file", "inspect gone.json", ("gone.json", "working directory")),
    Bad("inspecting a broken file", "inspect {rows}", ("r.json:1:1",), {"r.json": "x"}),
    Bad("inspecting two files", "inspect {rows} --train_file b.json", ("name one file", "--test_file"), {"r.json": ROW}),
    Bad("inspecting rows without replies", "inspect {rows} --prompt_column content", ("r.json:1", "--response_column"),
        {"r.json": ROW}),
    Bad("inspecting with a missing model", "inspect {rows} --model ./gone", ("./gone", "not found"), {"r.json": ROW}),
    Bad("inspecting a negative number of examples", "inspect {rows} --examples -1", ("--examples -1",), {"r.json": ROW}),
    Bad("comparing with a missing file", "inspect {rows} --test_file gone.json", ("gone.json", "working directory"),
        {"r.json": ROW}),
]  # fmt: skip

def a_model_of_ten_million_layers(folder: Path) -> None:
    make_checkpoint(folder / "m", config={"num_layers": 10**7})


DEEP = '{"content": "a", "summary": "b", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"

HARMFUL = [
    row_file("a name twice in a row", f'{ROW}\n{{"content": "a", "content": "b", "summary": "c"}}', "rows.json:2",
             "'content' stands twice", "correct this row"),
    row_file("a NUL byte", '{"content": "ab\0cd", "summary": "x"}', "rows.json:1:16: a NUL byte", "damaged"),
    row_file("a deep row", f"{ROW}\n{DEEP}", "rows.json:2", "nested too deeply"),
    row_file("a number without end", f'{ROW}\n{{"content": "a", "summary": {"9" * 5000}}}', "rows.json:2",
             "too many digits"),
    row_file("nothing that can be seen", '{"content": "\u200b", "summary": "\ufeff"}', "no usable row",
             "1 empty content and summary"),
    row_file("halves of characters", r'{"content": "\ud800", "summary": "b"}', "no usable row", "1 empty content"),
    row_file("semicolons with too many fields", "content;summary\na;b;c\n", "rows.csv:2", "3 fields", "semicolons",
             name="rows.csv"),
    Bad("a deep settings file", "train {rows}", ("s.json", "nested too deeply"), {"s.json": DEEP}),
    Bad("a deep settings file in YAML", "train {rows}", ("s.yaml", "nested too deeply"), {"s.yaml": "a: " + "[" * 9999}),
    Bad("a number without end in YAML", "train {rows}", ("s.yaml", "digits"), {"s.yaml": "seed: " + "9" * 5000}),
    Bad("a setting twice in YAML", "train {rows}", ("s.yaml:2:1", "seed stands twice"), {"s.yaml": "seed: 1\nseed: 2"}),
    Bad("a setting twice in JSON", "train {rows}", ("s.json", "'seed' stands twice"), {"s.json": '{"seed": 1, "seed": 2}'}),
    Bad("a pipe for rows", f"{TRAIN} {COLUMNS} --train_file rows.json", ("rows.json: this is a pipe",),
        prepare=lambda folder: os.mkfifo(folder / "rows.json")),
    Bad("a device for settings", "train s.yaml", ("s.yaml: this is a device",),
        prepare=lambda folder: (folder / "s.yaml").symlink_to("/dev/zero")),
    Bad("deep predictions", "evaluate --metrics-only {rows}", ("p.txt:1", "nested too deeply"), {"p.txt": "[" * 99_999}),
    Bad("a model folder of another world", f"{TRAIN} --train_file {{rows}} {COLUMNS} --model_name_or_path m",
        ("config.json has num_layers 10000000", "1 to 1000"), {"rows.json": GOOD}, a_model_of_ten_million_layers),
]  # fmt: skip

CASES = [*HARMFUL, *FILES, *BROKEN, *COLUMNS_AND_TYPES, *FORMS, *LIMITS_AND_FLAGS, *OTHER_VERBS]


def everything_in(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))


def check(case, tmp_path, monkeypatch, capfd):
    """Run a case in an empty folder, and hold what happens against it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    case.prepare(tmp_path)
    before = everything_in(tmp_path)
    assert main(case.command.format(rows=next(iter(case.files), "")).split()) == 2
    shown = capfd.readouterr()
    *_, message = shown.err.strip().splitlines()
    assert message.startswith("error: ")
    assert shown.err.count("error: ") == 1
    missing = [words for words in case.words if words not in message]
    assert not missing, f"{missing} not in: {message}"
    assert "Traceback" not in shown.out + shown.err
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_a_mistake_is_one_message_and_nothing_is_written(case, tmp_path, monkeypatch, capfd):
    check(case, tmp_path, monkeypatch, capfd)


def test_the_table_is_large_and_its_names_differ():
    assert len(CASES) >= 60
    assert len({case.what for case in CASES}) == len(CASES)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path, capfd):
    path = tmp_path / "rows.json"
    path.write_text(ROW, encoding="utf-8")
    path.chmod(0)
    assert main(["inspect", str(path)]) == 2
    assert re.search(r"rows\.json: cannot be read \(Permission denied\); check its permissions", capfd.readouterr().err)
