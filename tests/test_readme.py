"""Every command and every Python block of the README is run, with small limits and small files in place of the big ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_with_children

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = "--max_steps 2 --save_steps 2 --max_train_samples 16 --max_predict_samples 2 --max_target_length 16"
ROWS = " ".join(
    f"--{name}_file data/adgen-tiny/{file}.json"
    for name, file in (("train", "train"), ("validation", "dev"), ("test", "test"))
)

# How each command is run here: what is appended, and what is typed. A command that no rule knows fails its test.
RULES = {
    r"bash scripts/train\.sh": (f"{SMALL} --output_dir TMP/tiny", None),
    r"bash scripts/train\.sh configs/adgen\S+ .*": (
        f"{SMALL} {ROWS} --output_dir TMP/adgen --device cpu --do_predict",
        None,
    ),
    r"bash scripts/evaluate\.sh output/\S+": ("--max_predict_samples 2 --device cpu", None),
    r"bash scripts/train_chat\.sh configs/\S+ .*": (f"{SMALL} --output_dir TMP/chat --device cpu", None),
    r"bash scripts/evaluate\.sh --model.*": ("--max_predict_samples 2 --max_target_length 16 --output_dir TMP/eval", None),
    r"bash scripts/chat\.sh --model.*": ("--max_new_tokens 5", "你好\nclear\nstop\n"),
    r"ptuning (inspect|info|quantize) .*": ("", None),
    r'echo "你好" \| ptuning chat --plain': ("--max_new_tokens 5", None),
}
NOT_RUN = {"bash scripts/test.sh"}  # it is what runs this test


def commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.split(r"\s+# ", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def small_names(text, place, golden):
    """Put what there is here in the place of what a reader has."""
    for word, path in (
        ("DIR", golden / "model"),
        ("TARGET", place / "int4"),
        ("CHECKPOINT", golden / "checkpoint-prefix"),
        ("FILE", ROOT / "data" / ("dialogue-tiny" if "train_chat" in text else "adgen-tiny") / "train.json"),
    ):
        text = re.sub(rf"\b(?<!_){word}\b", str(path), text)
    return text.replace("output/adgen-chatglm-6b-pt-128-2e-2", f"{place}/adgen").replace("TMP", str(place))


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_command_works(command, place, golden):
    if command in NOT_RUN:
        assert (ROOT / command.split()[1]).is_file()
        return
    rule = next((rule for pattern, rule in RULES.items() if re.fullmatch(pattern, command)), None)
    assert rule is not None, f"no rule says how to run this command of the README small: {command}"
    extra, typed = rule
    environment = os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    words = ["bash", "-c", small_names(f"{command} {extra}", place, golden)]
    done = run_with_children(words, timeout=280, text_in=typed, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S))
def test_the_python_block_works(block, place, golden):
    code = small_names(block, place, golden).replace("max_length=128", "max_new_tokens=4")
    code = code.replace('tokenizer, "你好"', 'tokenizer, "你好", max_new_tokens=4')
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def test_files_that_the_readme_names_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
