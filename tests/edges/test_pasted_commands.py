"""Commands that are printed or stand in a report go through a real shell as they are, whatever the paths are called."""

import os
import subprocess
from pathlib import Path

import pytest

from ptuning.core.paths import path_argument
from ptuning.edges.results import print_result
from ptuning.edges.run_arguments import parse_arguments
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.report.run_settings import command_of
from ptuning.evaluation.rescoring import rescore
from ptuning.evaluation.run_result import RunResult, ScoredModel, evaluation_of

NAMES = [
    "plain", "two words", "it's", '"$HOME" `id`;&|', "$(touch owned)", "新 目录", "-dash", "~", "a\\b", "*?[x]", "new\nline",
]  # fmt: skip
STUB = "#!/bin/sh\nprintf '%s\\0' \"$@\" > arguments\n"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs a command with ``ptuning`` and ``scripts/chat.sh`` that only note their arguments; gives these."""
    for stub in (tmp_path / "bin" / "ptuning", tmp_path / "scripts" / "chat.sh"):
        stub.parent.mkdir()
        stub.write_text(STUB)
        stub.chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def run(command):
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": "/nowhere"}
        subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path, env=environment, timeout=60)
        assert not (tmp_path / "owned").exists()
        return (tmp_path / "arguments").read_text().split("\0")[:-1]

    return run


def same_place(given, path):
    """An argument that names that path, and neither a flag nor a home folder."""
    assert given == path_argument(path)
    assert not given.startswith(("-", "~"))
    return os.path.abspath(given) == os.path.abspath(path)


@pytest.mark.parametrize("name", NAMES)
def test_the_hint_to_talk_to_a_prefix(shell, capsys, name):
    checkpoint = Path(name) / "checkpoint-1"
    print_result(RunResult(Path(name), checkpoint, []))
    flag, path = shell(capsys.readouterr().out.partition("talk to it:")[2].strip())
    assert flag == "--ptuning_checkpoint"
    assert same_place(path, checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_a_report(shell, name):
    """Parsed again, it gives the same settings."""
    folders = [Path(name) / f"checkpoint-{step}" for step in (1, 2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "prefix_config.json").write_text("{}")
    flags = ["--model_name_or_path=tiny-chatglm", f"--test_file={name}", f"--output_dir={name}/out"]
    flags += [f"--source_prefix={name}"]
    arguments = parse_arguments([*map(path_argument, folders), *flags], task="evaluate")
    verb, *words = shell(command_of(arguments))
    assert verb == "evaluate"
    again = parse_arguments(words, task="evaluate")
    assert [path.absolute() for path in again.checkpoints] == [path.absolute() for path in folders]
    assert (again.data, again.training.output_dir) == (arguments.data, arguments.training.output_dir)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_scores_a_file_again(shell, name):
    Path(name).mkdir()
    file = Path(name) / "answers.txt"
    file.write_text('{"labels": "好", "predict": "很好"}\n', encoding="utf-8")
    rescore(file, Path(name) / "out")
    content = (Path(name) / "out" / "report.md").read_text(encoding="utf-8")
    verb, flag, path, out = shell(content.partition("```bash\n")[2].partition("\n```")[0])
    assert (verb, flag) == ("evaluate", "--metrics-only")
    assert same_place(path, file)
    assert out == f"--output_dir={name}/out"


@pytest.mark.parametrize("with_base", [False, True])
def test_samples_show_the_prediction(capsys, with_base):
    def model(name, answer, is_base):
        scores = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), 0)
        evaluation = evaluation_of([ScoredAnswer(0, "想要的", answer, scores=scores)])
        return ScoredModel(name, Path(), None, is_base, evaluation)

    models = [*([model("base model", "原来的", True)] if with_base else []), model("file", "得到的", False)]
    print_result(RunResult(Path(), None, [], models), written=False)
    said = capsys.readouterr().out
    assert "  reference  想要的\n" in said
    assert ("  prefix     得到的\n" if with_base else "  answer     得到的\n") in said
    assert ("  base       原来的\n" in said) == with_base
