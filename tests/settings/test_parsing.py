"""The parser under every verb: spellings, files, precedence, and what it says about mistakes."""

import enum
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ptuning.core.errors import UserError
from ptuning.settings.arguments import ServingArguments
from ptuning.settings.parsing import SettingsParser


class Pace(enum.Enum):
    NO = "no"
    STEPS = "steps"


@dataclass
class Basics:
    rows: int = 8
    rate: float | None = None
    name: str | None = None
    shuffle: bool = True
    keep: bool = False
    pace: Pace | str = "no"
    bits: Literal[0, 4, 8] | None = None
    source: str | None = field(default=None, metadata={"help": "50% of it", "path": True, "aliases": ("from_file",)})
    draw: Literal["one", "two"] = field(default="one", metadata={"shortcuts": {"twice": "two"}})
    places: None | str | list[str] = "none"  # noqa: RUF036
    labels: list[str] | None = None
    extra: dict[str, Any] | str | None = None
    max_steps: int = -1


def parse(*argv: str) -> dict[str, Any]:
    return parser().parse(argv).values


def parser() -> SettingsParser:
    return SettingsParser({"basics": Basics}, prog="ptuning try", description="try")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--rows", "3"], {"rows": 3}),
        (["--rows=3"], {"rows": 3}),
        (["rows=3"], {"rows": 3}),
        (["--max-steps", "-1"], {"max_steps": -1}),
        (["--rate", "2e-2"], {"rate": 0.02}),
        (["--keep"], {"keep": True}),
        (["--keep", "True"], {"keep": True}),
        (["--keep", "false"], {"keep": False}),
        (["--keep=1"], {"keep": True}),
        (["--no_shuffle"], {"shuffle": False}),
        (["--no-shuffle", "--rows", "1"], {"shuffle": False, "rows": 1}),
        (["--keep", "rows=3"], {"keep": True, "rows": 3}),
        (["--name", "a=b"], {"name": "a=b"}),
        (["--name=a=b"], {"name": "a=b"}),
        (["--name", ""], {"name": ""}),
        (["--bits", "0"], {"bits": 0}),
        (["--bits", "None"], {"bits": None}),
        (["--pace", "steps"], {"pace": "steps"}),
        (["--from_file", "x"], {"source": "x"}),
        (["--twice"], {"draw": "two"}),
        (["--places", "here", "there"], {"places": ["here", "there"]}),
        (["--places", "here"], {"places": "here"}),
        (["--labels", "here"], {"labels": ["here"]}),
        (["labels=a,b"], {"labels": ["a", "b"]}),
        (["--extra", '{"a": 1}'], {"extra": '{"a": 1}'}),
        (["--rows", "3", "--rows", "4"], {"rows": 4}),
    ],
)
def test_spellings(argv, expected):
    assert parse(*argv) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--row", "3"], r"--row: no such setting; did you mean --rows\?"),
        (["kee=1"], r"--kee: no such setting; did you mean --keep\?"),
        (["--zzzzzz"], r"--zzzzzz: no such setting \("),
        (["--rows", "x"], r"--rows: 'x' is not a whole number"),
        (["--rows", "3.5"], r"--rows: '3.5' is not a whole number"),
        (["--rate", "fast"], r"--rate: 'fast' is not a number"),
        (["--keep", "perhaps"], r"--keep: 'perhaps' is neither true nor false"),
        (["--pace", "run"], r"--pace: 'run' is not one of no, steps"),
        (["--bits", "3"], r"--bits: '3' is not one of 0, 4, 8"),
        (["--rows"], r"--rows: expected one argument"),
        (["--rows", "3", "stray"], r"'stray': not expected here"),
        (["--twice=false"], r"--twice=false: this flag takes no value"),
    ],
)
def test_mistakes_name_the_flag(argv, message):
    with pytest.raises(UserError, match=message):
        parse(*argv)


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_file_is_read_and_flags_beat_it(tmp_path, suffix):
    path = tmp_path / f"settings.{suffix}"
    path.write_text(
        json.dumps({"rows": 3, "rate": "2e-2", "keep": True, "name": None, "labels": ["a", "b"], "extra": {"k": 1}})
    )
    given = parser().parse([str(path), "--rows", "5", "shuffle=false"])
    assert given.config_file == path
    assert given.values == {
        "rows": 5,
        "rate": 0.02,
        "keep": True,
        "shuffle": False,
        "labels": ["a", "b"],
        "extra": '{"k": 1}',
    }
    assert given.build(Basics).rows == 5


def test_yaml_reads_numbers_and_no_as_people_mean_them(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("rate: 2e-2  # PyYAML alone reads this as text\npace: no\nbits: 4\n")
    assert parse(str(path)) == {"rate": 0.02, "pace": "no", "bits": 4}


def test_an_old_flag_on_the_command_line_beats_its_successor_in_the_file(tmp_path):
    @dataclass
    class Run:
        use_cpu: bool = False
        warmup_steps: float = 0

    path = tmp_path / "settings.yaml"
    path.write_text("warmup_steps: 5\nno_cuda: true\n")
    run = SettingsParser({"run": Run}, prog="ptuning try", description="try")
    assert run.parse([str(path), "--warmup_ratio", "0.1"]).values == {"warmup_steps": 0.1, "use_cpu": True}


def test_paths_in_a_file_are_found_from_here_then_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "project" / "configs").mkdir(parents=True)
    (tmp_path / "project" / "data.json").write_text("{}")
    config = tmp_path / "project" / "configs" / "a.yaml"
    config.write_text("source: data.json\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert parse(str(config))["source"] == str(tmp_path / "project" / "data.json")
    assert parse("../project/configs/a.yaml")["source"] == str(tmp_path / "project" / "data.json")
    assert parse(str(config), "--source", "data.json")["source"] == "data.json"
    (elsewhere / "data.json").write_text("{}")
    assert parse(str(config))["source"] == "data.json"
    config.write_text("source: nowhere.json\n")
    assert parse(str(config))["source"] == "nowhere.json"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "rows: 3\n\nrats: 1\n", r"a\.yaml:3: rats: no such setting; did you mean --rate"),
        ("a.yaml", "keep: true\nrows: many\n", r"a\.yaml:2: rows: 'many' is not a whole number"),
        ("a.json", '{\n  "rows": [1, 2]\n}', r"a\.json:2: rows: takes one value, a list of 2"),
        ("a.json", '{"rows": {"a": 1}}', r"a\.json:1: rows: takes one value, a group"),
        ("a.json", '{"rows": 1,}', r"a\.json:1:\d+: not valid JSON"),
        ("a.yaml", "rows: [1\n", r"a\.yaml:2:1: not valid YAML"),
        ("a.yaml", "- rows\n", r"a\.yaml: must be a mapping of settings .* found list"),
        ("a.json", "3", r"a\.json: must be a mapping"),
    ],
)
def test_mistakes_in_a_file_name_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        parse(str(tmp_path / name))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UserError, match=r"settings file not found: .*gone\.yaml \(current directory"):
        parse(str(tmp_path / "gone.yaml"))
    (tmp_path / "gbk.yaml").write_bytes("name: 你好".encode("gbk"))
    with pytest.raises(UserError, match="not UTF-8"):
        parse(str(tmp_path / "gbk.yaml"))


def test_a_byte_order_mark_and_an_empty_file_do_no_harm(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfrows: 2\n")
    assert parse(str(tmp_path / "bom.yaml")) == {"rows": 2}
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert parse(str(tmp_path / "empty.yaml")) == {}


def test_a_leading_folder_is_set_apart(tmp_path):
    given = parser().parse([str(tmp_path), "--rows", "1"])
    assert (given.folder, given.values) == (str(tmp_path), {"rows": 1})


def test_help_lists_every_setting_and_leaves(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--rows", "3", "--help")
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "ptuning try" in shown
    assert "50% of it" in shown
    for name in Basics.__dataclass_fields__:
        assert f"--{name}" in shown


def test_a_setting_may_be_given_again_and_again(tmp_path):
    parser = SettingsParser({"model": ServingArguments}, prog="x", description="")
    argv = ["--ptuning_checkpoint", "a=one,1", "--ptuning_checkpoint=b=two,2", "--ptuning_checkpoint", "c", "d"]
    assert parser.parse(argv).build(ServingArguments).ptuning_checkpoint == ["a=one,1", "b=two,2", "c", "d"]
    config = tmp_path / "serve.yaml"
    config.write_text("ptuning_checkpoint: [a=one, two]\n", encoding="utf-8")
    assert parser.parse([str(config)]).build(ServingArguments).ptuning_checkpoint == ["a=one", "two"]
