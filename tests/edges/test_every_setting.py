"""Every flag of every verb takes hostile values or says in one line what it takes: nothing else is ever raised.

The flags come from the parsers themselves, so that a new one is looked at without being named here.
"""

import dataclasses
import importlib
import json
import logging

import pytest
from checkpoints import whole_checkpoint

from ptuning.core.errors import UserError
from ptuning.edges.cli import VERBS
from ptuning.edges.output import inline
from ptuning.edges.run_arguments import parse_arguments
from ptuning.settings.parsing import SettingsParser
from ptuning.settings.run_checks import check_before_loading
from ptuning.settings.training_arguments import TuningArguments
from ptuning.settings.training_fields import CHOICES, FORCED, KNOWN, LIMITS, REFUSED, WORKS

HOSTILE = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "-0.0", "1e999", "-1e999", "5e-324", "9" * 400, "9" * 5000, "1.5", "٣",
    "18446744073709551616", "\x00", "a\x00b", "x" * 300, "x" * 100_000, "ü", "\ud800", "\x1b[31mred\x1b[0m", "\x9b31m",
    "\u202e", "true", "None", "word", "a,b", "a=b", "[]", "{", "{}", '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}',
    "[" * 5000, '{"a":' * 5000, "~nosuchuser/x", "/", "/dev/null", "..", "a\nb", "--help", "-h",
)  # fmt: skip
RUN = [
    "--model_name_or_path", "m", "--train_file", "t.json", "--test_file", "e.json", "--prompt_column", "p",
    "--response_column", "r", "--output_dir", "o",
]  # fmt: skip
RENAMED = {"activation_checkpointing_kwargs": "gradient_checkpointing_kwargs"}  # documented under its old name


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.chdir(tmp_path)
    logging.getLogger("ptuning").setLevel(logging.ERROR)
    yield
    logging.getLogger("ptuning").setLevel(logging.NOTSET)
    assert list(tmp_path.iterdir()) == [], "nothing is written while settings are read"


class CaughtError(Exception):
    """Carries the parser out of the verb that made it."""


def parser_of(verb, *argv):
    """The parser that a verb makes."""
    found = []

    def parse(self, words):
        found.append(self)
        raise CaughtError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SettingsParser, "parse", parse)
        with pytest.raises(CaughtError):
            importlib.import_module(VERBS[verb][0]).main(list(argv))
    return found[0]


def reads(verb, parser):
    """A function that reads a command line as the verb does, and loads nothing."""

    def read(argv):
        given = parser.parse(argv)
        if verb == "train":
            check_before_loading(parse_arguments([*RUN, *argv]).training)
            return
        for kind in parser.groups:
            if {field.name for field in dataclasses.fields(kind)} & set(given.values):
                given.build(kind)

    return read


def check(read, argv, names):
    """Read a command line, which is taken, or refused in one line with one of the names in it."""
    try:
        read(argv)
    except UserError as error:
        said = inline(str(error))  # as it is printed
        assert any(name in said for name in names), f"{argv[0][:60]!r}: {names} not in: {said[:300]}"
        assert said.isprintable(), f"{argv[0][:60]!r}: {said[:300]!r}"
        assert len(said) < 1500, f"{argv[0][:60]!r}: {said[:300]!r}"
    except Exception as error:
        raise AssertionError(f"{argv[0][:60]!r}: {type(error).__name__}: {str(error)[:300]}") from error


LINES = [(verb, ()) for verb in VERBS] + [("evaluate", ("--metrics-only", "x"))]


@pytest.mark.parametrize(("verb", "argv"), LINES, ids=[" ".join(map(str, (verb, *argv))) for verb, argv in LINES])
def test_a_flag_is_taken_or_refused_by_its_name_whatever_its_value(verb, argv):
    parser = parser_of(verb, *argv)
    assert parser.settings
    read = reads(verb if not argv else "", parser)
    for name in [*parser.settings, *parser.legacy, *parser.alias, *parser.shortcut]:
        meant = parser.alias.get(name, name)
        names = [name, meant, RENAMED.get(meant, meant)]
        if name in parser.legacy:
            names.append(parser.legacy[name].target or name)
        for value in HOSTILE:
            check(read, [f"--{name}={value}"], names)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_settings_file_is_taken_or_refused_whatever_it_holds(tmp_path_factory, suffix):
    values = {
        "json": ["NaN", "-Infinity", "1e400", "[1, [2]]", '{"a": NaN}', "null", '""', '"\\u0000"', "true", "9" * 400],
        "yaml": [
            ".nan", "-.inf", "1e400", "2020-01-01", "[1, [2]]", "{a: {b: .nan}}", "{1: 2}", "{a: 2020-01-01}", "0x10",
            "!!binary aGk=", "&a [*a]", "&a {b: *a}", "yes", "~", "''", '"\\0"', "9" * 400, "'" + "x" * 5000 + "'",
        ],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("files") / f"settings.{suffix}"
    names = ("seed", "learning_rate", "train_file", "lr_scheduler_kwargs", "report_to", "", "help", "a b", "-h", "x=y")
    for name in names:
        for value in values[suffix]:
            path.write_text(f"{{{json.dumps(name)}: {value}}}\n", encoding="utf-8")
            check(lambda argv: parse_arguments(argv), [str(path), *RUN], [name.partition("=")[0], f"{path}:1:"])


SAVED = (
    '{"max_target_length": "abc"}', '{"max_target_length": [1]}', '{"seed": -1}', '{"learning_rate": NaN}',
    '{"num_beams": 0}', '{"do_eval": "maybe"}', '{"model_name_or_path": ""}', '{"encoding": {"a": 1}}', "[1]", "{",
    '{"sparkle": 1}',
)  # fmt: skip


@pytest.mark.parametrize("content", SAVED)
def test_the_saved_settings_of_a_run_are_held_to_the_same(tmp_path_factory, content):
    """``ptuning evaluate FOLDER`` reads them: the file is named."""
    folder = tmp_path_factory.mktemp("run")
    whole_checkpoint(folder, 5)
    (folder / "arguments.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        parse_arguments([str(folder), *RUN[2:-2]], task="evaluate")
    assert inline(caught.value.args[0]).isprintable()
    (name,) = json.loads(content) if content.startswith('{"') else ("arguments.json",)
    assert name in str(caught.value)


WORDS = ("", "a\x00b", "x" * 300, "y/" * 3000, "~nosuchuser/x", "\x1b[31m", "~nosuchuser/a.yaml", "\ud800")


@pytest.mark.parametrize("word", WORDS, ids=ascii)
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "web"])
def test_words_before_the_flags_are_paths(verb, word):
    """A folder or file named first; where it is none, one line says so before anything is loaded."""
    with pytest.raises(UserError) as caught:
        importlib.import_module(VERBS[verb][0]).main([word])
    assert inline(str(caught.value)).isprintable()


def test_every_field_of_transformers_is_classified_once():
    fields = {field.name for field in dataclasses.fields(TuningArguments)}
    assert not fields - KNOWN, "a new transformers has these: say in training_fields whether they work here"
    assert sum(map(len, (LIMITS, CHOICES, REFUSED, FORCED, WORKS))) == len(KNOWN)


def test_a_field_that_nobody_knows_is_refused_unless_it_says_nothing():
    @dataclasses.dataclass
    class Newer(TuningArguments):
        sparkle: float = 0.5

    Newer(output_dir="o", sparkle=0.5)
    with pytest.raises(UserError, match=r"--sparkle 0.7: a setting of transformers [\d.]+ that ptuning does not know"):
        Newer(output_dir="o", sparkle=0.7)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & {field.name for field in dataclasses.fields(TuningArguments)}))
def test_a_refused_field_may_be_given_its_default(name):
    field = TuningArguments.__dataclass_fields__[name]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    TuningArguments(output_dir="o", **{name: default})
    other = (not default) if isinstance(default, bool) else "something"
    with pytest.raises(UserError, match=f"--{name} "):
        TuningArguments(output_dir="o", **{name: other})
