"""The ``ptuning`` command as a process: help, version, mistakes, and what it does not import."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ptuning.core.errors import UserError
from ptuning.edges import cli

ROOT = Path(__file__).resolve().parents[2]


def ptuning(*argv, code=None):
    """Run ``python -m ptuning`` (or the given Python code) and return the finished process."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "ptuning"]
    return subprocess.run([*command, *argv], capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_help_names_every_verb():
    for words in (["--help"], ["-h"], []):
        done = ptuning(*words)
        assert (done.returncode, done.stderr) == (0, "")
        for verb in cli.VERBS:
            assert f"  {verb} " in done.stdout


def test_version_is_the_one_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = ptuning("--version")
    assert (done.returncode, done.stdout) == (0, f"ptuning {project['version']}\n")


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(flag):
    code = (
        "import sys; from ptuning.edges.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'jieba'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = ptuning(flag, code=code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: ptuning trian: no such verb; did you mean train? (ptuning --help)"),
        (["xyz"], f"error: ptuning xyz: no such verb; there are {', '.join(cli.VERBS)} (ptuning --help)"),
        (["--verbose"], "error: ptuning --verbose: no such verb"),
    ],
)
def test_an_unknown_verb_is_one_line_and_exit_code_2(words, message):
    done = ptuning(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(monkeypatch, capsys):
    def mistaken(argv):
        raise UserError("train.json:3: no column 'summary'\n(has: content)")

    monkeypatch.setattr(cli, "run", mistaken)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "error: train.json:3: no column 'summary' (has: content)\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def broken(argv):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main([])


def test_the_verb_gets_its_arguments_and_gives_its_exit_code(monkeypatch, tmp_path):
    (tmp_path / "a_verb_for_a_test.py").write_text("def main(argv):\n    return len(argv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "count", ("a_verb_for_a_test", "counts its arguments"))
    assert cli.main(["count", "a", "b", "c"]) == 3
    assert cli.main(["count"]) == 0
    assert "counts its arguments" in cli.help_text()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_ends_with_130():
    code = (
        "import sys, os, signal; from ptuning.edges import cli;"
        "cli.run = lambda argv: os.kill(os.getpid(), signal.SIGINT);"
        "sys.exit(cli.main())"
    )
    done = ptuning(code=code)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
