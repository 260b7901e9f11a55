"""A checkout that was never installed: everything it needs is there, but no package manager has heard of ptuning."""

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(os.name != "posix", reason="links every installed package")
def test_a_checkout_that_is_not_installed_trains_and_evaluates(command, tmp_path, rows_file):
    packages = tmp_path / "packages"
    packages.mkdir()
    for place in {*site.getsitepackages(), str(Path(torch.__file__).parent.parent)}:
        for item in Path(place).iterdir():
            if "ptuning" not in item.name and not (packages / item.name).exists():
                (packages / item.name).symlink_to(item)
    (packages / "ptuning").symlink_to(ROOT / "ptuning")  # and not ROOT, where an installation leaves what tells of it
    argv = command(tmp_path / "run", max_steps=1, do_predict=True, test_file=rows_file, max_predict_samples=1)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "ptuning", "train", *argv, "--val_max_target_length=4"],
        capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(packages)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    config = json.loads((tmp_path / "run" / "checkpoint-1" / "prefix_config.json").read_text(encoding="utf-8"))
    assert report["versions"]["ptuning"] == config["versions"]["ptuning"]
    asked = subprocess.run(
        [sys.executable, "-S", "-c", "import importlib.metadata as m; m.version('ptuning')"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(packages)},
    )  # fmt: skip
    assert "PackageNotFoundError" in asked.stderr  # else this test tests nothing
