"""The command in processes of their own that start at once: they are forked from one that has everything imported.

Such a process can be killed at any moment; what it wrote to the disk is what a user would find.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "ptuning.edges.tuning", "ptuning.edges.results", "jieba", "nltk", "rouge_chinese", "sacrebleu.metrics", "jinja2",
        "matplotlib.figure", "matplotlib.backends.backend_agg",
    ]
)


class Command:
    """``ptuning ARGV`` in a new process.

    Attributes:
        pid: of the process.
        output: file with everything it printed.
    """

    def __init__(self, argv, output, limit_memory=None, limit_file=None):
        self.output = Path(output)
        self._process = _CONTEXT.Process(target=_inside, args=(list(map(str, argv)), str(output), limit_memory, limit_file))
        self._process.start()
        self.pid = self._process.pid

    def send(self, number):
        """Send a signal, where the process still runs."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout=240):
        """Wait for the end; the exit code (negative: the signal that ended it)."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.text()}")
        return self._process.exitcode

    def running(self):
        """Whether it has not ended."""
        return self._process.is_alive()

    def text(self):
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""

    def wait_for(self, condition, timeout=240):
        """Wait until ``condition()`` holds or the process ends; what it gave."""
        until = time.monotonic() + timeout
        while time.monotonic() < until and self.running():
            if found := condition():
                return found
            time.sleep(0.0002)
        return condition()


def _inside(argv, output, limit_memory, limit_file):
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit_memory is not None:
        import resource

        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limit_memory, size + limit_memory))
    if limit_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file, limit_file))  # as `ulimit -f`, in bytes
    from ptuning.edges.cli import main

    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
