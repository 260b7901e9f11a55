"""What ``scripts/test.sh --quick`` runs: most tests, some of every room, and all that hold golden results."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import COLLECTED, OPTIONAL
from processes import Command, run_with_children

TESTS = Path(__file__).parent


def folder_of(item):
    return item.path.parent.relative_to(TESTS).as_posix()


def is_slow(item):
    return item.get_closest_marker("slow") is not None


@pytest.fixture
def collected(request):
    """Every test there is, also those that this run leaves out."""
    items = request.config.stash[COLLECTED]
    files = set(TESTS.rglob("test_*.py"))
    if len({item.path for item in items}) < 0.9 * len(files):
        pytest.skip("only a part of the tests was collected")
    return items


def test_some_tests_of_every_room_are_quick(collected):
    folders = {folder_of(item) for item in collected}
    assert {folder_of(item) for item in collected if not is_slow(item)} == folders
    assert {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")} == folders


def test_most_tests_are_quick(collected):
    assert sum(map(is_slow, collected)) < len(collected) / 5


def test_what_holds_golden_results_is_quick(collected):
    """Those that ask for them themselves; the rows of small runs come out of the same file."""

    def golden(item):
        own = item._fixtureinfo.argnames
        return "golden_tensors" in item.fixturenames or "golden_cases" in own

    assert any(map(golden, collected))
    assert not [item.nodeid for item in collected if golden(item) and is_slow(item)]


MISSING = sorted({*OPTIONAL, "datasets", "jieba", "nltk", "rouge_chinese"})
WITHOUT_PACKAGES = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING}))
import pytest
sys.exit(pytest.main(["-q", "-rs", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_tests_for_a_gpu_need_no_package_of_other_tests():
    files = [TESTS / "edges" / "http" / "test_http.py", TESTS / "kernels" / "test_kernels.py"]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES, *map(str, files)], capture_output=True, text=True, check=False,
        cwd=TESTS.parent, env=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_timeout"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the package httpx is not installed" in done.stdout
    assert "test_gpu_kernels_give_the_dense_product" in done.stdout


@pytest.mark.slow
def test_commands_are_forked_from_a_process_that_has_everything(tmp_path):
    """A module that cannot be imported there would only be missed, and every command be slow."""
    given = "import gc, sys; assert 'tests.preloaded' in sys.modules and gc.get_freeze_count() > 0"
    run = Command(["--version"], tmp_path / "out", before=given)
    assert run.wait() == 0, run.text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_nothing_outlives_a_command_that_is_cut_short(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run_with_children(["bash", "-c", f"sleep 300 & echo $! > {tmp_path / 'child'}; wait"], timeout=0.5)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    end = time.monotonic() + 10
    while child.exists() and ") Z " not in child.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
