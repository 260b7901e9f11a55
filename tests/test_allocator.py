"""What the process keeps of freed memory. Each in a process of its own: the settings hold for the whole process."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")

FREED_AND_ASKED_FOR_AGAIN = """
import resource, sys, torch
from ptuning.tuned import allocator
if sys.argv[1] != "neither" and not getattr(allocator, sys.argv[1])():
    sys.exit("not taken")
def step():
    tensors = [torch.ones(3 << 20) for _ in range(8)]  # 96 MB
for _ in range(4):  # by then the pieces lie where they fit
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages * 4096 // 2**20)
"""


def megabytes_given_by_the_system(setting):
    done = subprocess.run(
        [sys.executable, "-c", FREED_AND_ASKED_FOR_AGAIN, setting], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kept_memory_is_used_again():
    assert megabytes_given_by_the_system("keep_freed_memory") < 10


def test_returned_memory_is_asked_for_anew():
    assert megabytes_given_by_the_system("return_freed_memory") > 300
