"""What several test files share: the published results, read once."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from compilers import write_quick_compiler
from runs import small_run, write_rows
from safetensors.torch import load_file

# Read when Triton is first imported, which torch's compiler does in many a test; nothing else here uses it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

COLLECTED = pytest.StashKey[list[pytest.Item]]()
OPTIONAL = {
    "fastapi", "gradio", "gradio_client", "httpx", "hypothesis", "openai", "pexpect", "prometheus_client", "starlette",
    "uvicorn",
}
"""Packages of extras and of tests that a machine may lack on which only some tests are run, as those for a GPU."""
SLOW_LIMIT = 300  # seconds of a test marked slow


def pytest_configure(config):
    """Tests press Ctrl-C in programs they start, and a program started where the signal is ignored would ignore it too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ModuleOfTests(pytest.Module):
    """A file of tests, left out with a reason where it needs a package that is not there and need not be."""

    def collect(self):
        """Its tests."""
        try:
            return super().collect()
        except self.CollectError as error:
            cause = error.__cause__
            missing = isinstance(cause, ModuleNotFoundError) and (cause.name or "").partition(".")[0]
            if missing not in OPTIONAL or "CI" in os.environ:
                raise
            pytest.skip(f"the package {missing} is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Files of tests are collected as ``ModuleOfTests``."""
    return ModuleOfTests.from_parent(parent, path=module_path)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Slow tests get more time; all that was collected is kept for the test that looks at the marks."""
    config.stash[COLLECTED] = list(items)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process takes a half of the tests in their order, and later from the other's end: fixtures are made once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """Prepared rows are kept beside the tests' other files, not in the user's cache."""
    before = os.environ.get("PTUNING_CACHE")
    os.environ["PTUNING_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("PTUNING_CACHE")
    if before is not None:
        os.environ["PTUNING_CACHE"] = before


@pytest.fixture(autouse=True)
def _no_command_outlives_its_test():
    """Whatever became of the test."""
    yield
    if "processes" in sys.modules:
        sys.modules["processes"].end_all()


@pytest.fixture(scope="session")
def quick_compiler(tmp_path_factory) -> Path:
    """A folder for the front of PATH: a compiler for tests of what is around compiling."""
    return write_quick_compiler(tmp_path_factory.mktemp("compiler"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the results that the published code gave (see tests/golden/README.md)."""
    return Path(__file__).parent / "golden" / "chatglm-tiny"


@pytest.fixture(scope="session")
def golden_tensors(golden):
    """Tensors of those results."""
    return load_file(golden / "tensors.safetensors")


@pytest.fixture(scope="session")
def golden_cases(golden):
    """Texts, ids and scores of those results."""
    return json.loads((golden / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory, golden_cases):
    """The golden training rows in a file of their own."""
    return write_rows(tmp_path_factory.mktemp("rows") / "train.json", golden_cases)


@pytest.fixture(scope="session")
def command(golden, rows_file):
    """The flags of a small run; the published names. ``command(output_dir, name=value, ...)``."""
    return partial(small_run, golden / "model", rows_file)
