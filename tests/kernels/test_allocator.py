"""What the process keeps of freed memory. Each in a process of its own: the settings hold for the whole process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ptuning.kernels.allocator import on_large_pages, zeros_when_read

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")

FREED_AND_ASKED_FOR_AGAIN = """
import resource, sys, torch
from ptuning.kernels import allocator
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


@pytest.mark.slow
def test_kept_memory_is_used_again():
    assert megabytes_given_by_the_system("keep_freed_memory") < 10


@pytest.mark.slow
def test_returned_memory_is_asked_for_anew():
    assert megabytes_given_by_the_system("return_freed_memory") > 300


LARGE = """
import torch
from ptuning.kernels.allocator import on_large_pages
made = on_large_pages(torch.empty(16 << 20, dtype=torch.uint8))
made.fill_(1)
lines, inside = open("/proc/self/smaps").read().splitlines(), False
for line in lines:
    head = line.split()[0]
    if "-" in head and not head.endswith(":"):
        low, high = (int(number, 16) for number in head.split("-"))
        inside = low < made.data_ptr() + (8 << 20) < high
    elif inside and head == "VmFlags:":
        print("hg" in line.split())
"""


@pytest.mark.slow
def test_weights_ask_for_large_pages():
    """The mark that the system puts on memory that was asked for so; whether it has such pages is its own affair."""
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii"):
        pytest.skip("this system has no large pages")
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_a_small_tensor_is_left_alone():
    assert on_large_pages(torch.ones(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_that_nobody_touches_take_no_memory(dtype):
    def resident():
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    before = resident()
    made = zeros_when_read((4, 1 << 24), dtype, torch.device("cpu"))
    assert resident() - before < made.nbytes // 20
    assert made.dtype == dtype
    assert made.shape == (4, 1 << 24)
    assert not made[2].any()
    made[2] = 1.0
    assert resident() - before >= made.nbytes // 4
    assert not made[3].any()
