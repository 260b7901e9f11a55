"""The shell scripts: what they set up, what they call, and that they work from any directory.

The environments here are stand-ins whose "python" writes down what it is asked to do: nothing is installed.
"""

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ptuning.edges.cli import VERBS
from scripts.missing_requirements import missing

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None or os.name == "nt", reason="needs bash")

STAND_IN = """#!{bash}
case "$*" in
    *missing_requirements*) printf '%s\\n' $FAKE_MISSING ;;
    "-m venv "*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; echo "venv" >> "$FAKE_LOG" ;;
    "-m pip --version") ;;
    "-m pip "*|*"-m ptuning"*) echo "$*" >> "$FAKE_LOG" ;;
    "-m "*) echo "$*" >> "$FAKE_LOG"; [ "$2" != "$FAKE_FAILING" ] ;;
    *) exec {python} "$@" ;;
esac
"""


class Desk:
    """A copy of the scripts, a stand-in Python, and the log of what that was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"
        self.bin = folder / "bin"
        self.here = folder / "somewhere else"
        self.environment = folder / "active env"
        self.log = folder / "log"
        for place in (self.bin, self.here, self.environment / "bin"):
            place.mkdir(parents=True)
        shutil.copytree(ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__", "tiny"))
        for name in ("requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for place in (self.bin / "python3.13", self.environment / "bin" / "python"):
            place.write_text(STAND_IN.format(bash=BASH, python=sys.executable))
            place.chmod(0o755)

    def run(self, script, *argv, active=True, missing_there="", failing="", **more):
        """Run a script from another directory; return the finished process and the new lines of the log."""
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.here), "FAKE_LOG": str(self.log), **more}
        env |= {"FAKE_MISSING": missing_there, "FAKE_FAILING": failing}
        if active:
            env["VIRTUAL_ENV"] = str(self.environment)
        self.log.write_text("")
        command = [BASH, str(self.root / "scripts" / script), *argv]
        done = subprocess.run(command, cwd=self.here, env=env, capture_output=True, text=True, timeout=60)
        return done, self.log.read_text().splitlines()


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_and_says_what_it_is_for(path):
    assert subprocess.run([BASH, "-n", str(path)], check=False).returncode == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text
    assert path.stat().st_mode & stat.S_IXUSR
    # macOS ships bash 3.2, which knows none of these.
    assert not re.search(r"declare -A|mapfile|readarray|\$\{\w+,,\}|\$\{\w+\^\^\}|\|&|&>>", text)


@pytest.mark.parametrize(
    ("script", "argv", "expected"),
    [
        ("train.sh", [], "train {root}/configs/tiny.yaml"),
        ("train.sh", ["--max_steps", "3"], "train {root}/configs/tiny.yaml --max_steps 3"),
        ("train.sh", ["max_steps=3"], "train {root}/configs/tiny.yaml max_steps=3"),
        ("train.sh", ["mine.yaml", "--max_steps", "3"], "train mine.yaml --max_steps 3"),
        ("train.sh", ["mine.json"], "train mine.json"),
        ("train_chat.sh", [], "train {root}/configs/tiny-chat.yaml"),
        ("train_chat.sh", ["mine.yml", "--x"], "train mine.yml --x"),
        ("evaluate.sh", [], "evaluate output/tiny"),
        ("evaluate.sh", ["--num_beams", "2"], "evaluate output/tiny --num_beams 2"),
        ("evaluate.sh", ["out/checkpoint-5", "--num_beams", "2"], "evaluate out/checkpoint-5 --num_beams 2"),
        ("evaluate.sh", ["mine.yaml"], "evaluate mine.yaml"),
        ("evaluate.sh", ["--ptuning_checkpoint", "x"], "evaluate --ptuning_checkpoint x"),
        ("chat.sh", [], "chat"),
        ("api.sh", [], "serve"),
        ("api.sh", ["--ptuning_checkpoint", "x=y z"], "serve --ptuning_checkpoint x=y z"),
        ("chat.sh", ["--ptuning_checkpoint", "x"], "chat --ptuning_checkpoint x"),
        ("web_demo.sh", [], "web"),
        ("web_demo.sh", ["web.json"], "web web.json"),
        (  # as published
            "web_demo.sh",
            ["--model_name_or_path", "THUDM/chatglm-6b", "--ptuning_checkpoint", "a/checkpoint-3", "--pre_seq_len", "128"],
            "web --model_name_or_path THUDM/chatglm-6b --ptuning_checkpoint a/checkpoint-3 --pre_seq_len 128",
        ),
    ],
)
def test_a_script_calls_its_verb(desk, script, argv, expected):
    done, log = desk.run(script, *argv)
    assert done.returncode == 0, done.stderr
    assert log == [f"-P -m ptuning {expected.format(root=desk.root)}"]
    assert done.stderr == ""


def test_benchmark_sh_calls_the_benchmarks_with_what_it_is_given(desk):
    done, log = desk.run("benchmark.sh", "train", "--size", "tiny")
    assert (done.returncode, log, done.stderr) == (0, ["-m benchmarks train --size tiny"], "")
    done, _ = desk.run("benchmark.sh", "train", failing="benchmarks")
    assert done.returncode == 1


def test_every_verb_that_a_script_calls_exists():
    for path in SCRIPTS:
        for verb in re.findall(r"-m ptuning (\w+)", path.read_text(encoding="utf-8")):
            assert verb in VERBS


def test_without_an_environment_one_is_made_once(desk):
    done, log = desk.run("train.sh", active=False)
    assert done.returncode == 0, done.stderr
    assert log[0] == "venv"
    assert log[1].endswith(f"-r {desk.root}/requirements.txt")
    assert log[2].endswith(f"-e {desk.root} --no-deps")
    assert log[3].startswith("-P -m ptuning train")
    assert (desk.root / ".venv" / "bin" / "python").is_file()
    assert f"no environment is active: creating {desk.root}/.venv" in done.stderr

    done, log = desk.run("train.sh", active=False)
    assert (len(log), done.stderr) == (1, ""), "the second run starts at once"

    with (desk.root / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    done, log = desk.run("train.sh", active=False)
    assert [line.split()[1] for line in log[:2]] == ["pip", "pip"]
    assert len(log) == 3, "a change of requirements installs again, into the same environment"


def test_the_environment_of_the_checkout_counts_as_its_own_when_active(desk):
    desk.run("setup.sh", active=False)
    done, log = desk.run("setup.sh", active=False, VIRTUAL_ENV=str(desk.root / ".venv"))
    assert (done.returncode, log) == (0, [])


def test_the_base_environment_of_conda_is_left_alone(desk):
    done, log = desk.run("setup.sh", active=False, CONDA_PREFIX=str(desk.environment), CONDA_DEFAULT_ENV="base")
    assert "venv" in log
    done, log = desk.run("setup.sh", active=False, CONDA_PREFIX=str(desk.environment), CONDA_DEFAULT_ENV="mine")
    assert (done.returncode, log) == (0, [])


def test_an_active_environment_gets_only_what_it_lacks(desk):
    done, log = desk.run("train.sh", missing_there="jieba==0.42.1 nltk==3.10.4")
    assert log[0].endswith("jieba==0.42.1 nltk==3.10.4")
    assert log[1].startswith("-P -m ptuning train")
    assert "lacks some packages; installing jieba==0.42.1 nltk==3.10.4" in done.stderr
    _, log = desk.run("train.sh", missing_there="ptuning")
    assert log[0].endswith(f"-e {desk.root} --no-deps")
    assert len(log) == 2


def test_test_sh_checks_style_types_and_tests_and_fails_with_any_of_them(desk):
    done, log = desk.run("test.sh")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[1] for line in log) == ["mypy", "pytest", "ruff"]
    for tool in ("ruff", "mypy", "pytest"):
        done, log = desk.run("test.sh", failing=tool)
        assert done.returncode == 1
        assert sorted(line.split()[1] for line in log) == ["mypy", "pytest", "ruff"], "the others run all the same"
        assert ("style or types failed" in done.stdout) == (tool != "pytest")


def test_test_sh_hands_pytest_what_it_is_given(desk):
    done, log = desk.run("test.sh", "tests/core", "-k", "one or two", PTUNING_TEST_WORKERS="3")
    assert done.returncode == 0, done.stderr
    assert "-m pytest -q -n 3 tests/core -k one or two" in log


@pytest.mark.parametrize("argv", [["--quick", "-x"], ["-x", "--quick"]], ids=" ".join)
def test_test_sh_quick_leaves_out_the_slow_tests(desk, argv):
    done, log = desk.run("test.sh", *argv)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[1] for line in log) == ["mypy", "pytest", "ruff"]
    assert "-m pytest -q -n 2 -m not slow -x" in log
    for tool in ("ruff", "mypy", "pytest"):
        assert desk.run("test.sh", "--quick", failing=tool)[0].returncode == 1


def test_test_sh_says_what_it_takes_and_runs_nothing(desk):
    done, log = desk.run("test.sh", "--help")
    assert (done.returncode, log) == (0, [])
    assert "--quick" in done.stdout
    assert "set -euo" not in done.stdout


def test_the_tests_output_comes_whole_after_that_of_style_and_types(desk):
    """All of them run at once, and pytest may fill its pipe before mypy has said a word."""
    slow = '''case "$*" in
    "-m mypy"*) sleep 0.5; echo "types are fine" ;;
    "-m pytest"*) echo "first"; seq 30000; echo "to stderr" >&2; echo "closing line" ;;
'''
    python = desk.environment / "bin" / "python"
    python.write_text(python.read_text().replace('case "$*" in\n', slow, 1))
    done, _ = desk.run("test.sh")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:5] == ["== ruff check", "== mypy", "types are fine", "== pytest", "first"]
    assert (len(lines), lines[-1]) == (5 + 30000 + 2, "closing line")


def test_continuous_integration_runs_test_sh():
    assert 'exec bash "$(dirname "$0")/../scripts/test.sh"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def pins():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_requirements_are_exact_and_torch_comes_first():
    assert pins()[0] == "torch==2.13.0"
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+(; platform_system == "Linux")?', line) for line in pins())


def test_every_dependency_of_the_project_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins()}
    wanted = {re.sub(r"[-_.]+", "-", re.split(r"[<>=]", item)[0]).lower() for item in project["dependencies"]}
    assert wanted <= pinned


def test_missing_requirements_are_found_by_name_and_by_age(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["pytest>=999", "PyYAML>=5"]\n'
        '[project.optional-dependencies]\nx = ["no_such_one>=1"]\n'
    )
    (tmp_path / "requirements.txt").write_text(
        "pytest==1000.1\nPyYAML==6.0\nno_such_one==1.0\nnot_here==1; platform_system == \"Nowhere\"\n"
        f"# tests\nno_such_tool==2; platform_system == \"{platform.system()}\"\n"
    )
    assert missing(tmp_path) == ["pytest==1000.1", "no_such_one==1.0", "ptuning"]
    assert missing(tmp_path, tests=True) == ["pytest==1000.1", "no_such_one==1.0", "no_such_tool==2", "ptuning"]


def readme_commands() -> list[str]:
    """Every command in a ```bash block of the README, continued lines joined, comments and prompts left out."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README yet")
    blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" # ")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_scripts_verbs_and_settings_files_named_in_the_readme_exist():
    for command in readme_commands():
        for name in re.findall(r"(?:scripts|configs)/[\w./-]+", command):
            assert (ROOT / name).is_file(), command
        for verb in re.findall(r"(?:^|-m )ptuning (\w+)", command):
            assert verb in VERBS, command
