"""The command in processes of their own that start at once: they are forked from one that has everything imported.

Such a process can be killed at any moment; what it wrote to the disk is what a user would find. None outlives its test:
tests/conftest.py ends what is left, also after a test that failed or ran out of time.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from weakref import WeakSet

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])  # which starts in the checkout
_started: WeakSet["Command"] = WeakSet()


class Command:
    """``ptuning ARGV`` in a new process.

    ``errors``: a file for stderr, which otherwise goes where stdout goes; ``before``: Python code that runs first;
    ``module``: whose ``main`` takes the arguments.

    Attributes:
        pid: of the process.
        output: file with everything it printed.
    """

    def __init__(self, argv, output, limit_memory=None, limit_file=None, *, errors=None, before="",
                 module="ptuning.edges.cli"):  # fmt: skip
        self.output = Path(output)
        streams = (str(output), str(errors or output))
        limits = {"RLIMIT_AS": limit_memory, "RLIMIT_FSIZE": limit_file}
        words = list(map(str, argv))
        self._process = FORKS.Process(target=_inside, args=(words, streams, limits, before, module))
        self._process.start()
        self.pid = self._process.pid
        _started.add(self)

    def send(self, number):
        """Send a signal, where the process still runs."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout=240):
        """Wait for the end; the exit code (negative: the signal that ended it)."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.end()
            raise AssertionError(f"still running after {timeout} s:\n{self.text()}")
        return self._process.exitcode

    def end(self):
        """Kill it, where it still runs."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

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
            time.sleep(0.001)
        return condition()


def end_all():
    """Kill every command that still runs."""
    for command in list(_started):
        command.end()


def finished(argv, folder, **settings):
    """Run the command to its end; what ``subprocess.run`` would give. ``folder``: for what it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("stdout-*")))
    output, errors = (folder / f"{name}-{number}" for name in ("stdout", "stderr"))
    command = Command(argv, output, errors=errors, **settings)
    code = command.wait()
    return subprocess.CompletedProcess(argv, code, command.text(), errors.read_text(encoding="utf-8"))


def run_with_children(command, timeout, text_in=None, **settings):
    """``subprocess.run`` with captured texts; where it is cut short, the processes that it started end with it."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE if text_in else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, **settings,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(text_in, timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


ONE_AFTER_THE_OTHER = """
import json, os, sys, traceback
first, cases = json.loads(sys.stdin.read())
exec(first, {})
for code, argv, folder, output in cases:
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(f"{output}-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(folder)
        sys.argv, ended = ["-c", *argv], 1
        try:
            exec(code, {"__name__": "__main__"})
            ended = 0
        except SystemExit as error:
            ended = error.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(ended)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def forked_from_one(first, cases, folder, **settings):
    """Run every case in a process that is forked from one that has done ``first``; what each gave, in their order.

    Args:
        first: Python code, as imports of libraries whose import is not what is tested.
        cases: (Python code, its arguments, its working directory) each.
        folder: for what they print.
        settings: of ``subprocess.run``, as ``env``.
    """
    given = [
        (code, list(map(str, argv)), str(place), str(folder / f"case-{number}"))
        for number, (code, argv, place) in enumerate(cases)
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], input=json.dumps([first, given]), capture_output=True, text=True,
        timeout=280, check=True, **settings,
    )
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(given), done.stderr
    texts = [[Path(f"{output}-{number}").read_text(encoding="utf-8") for number in (1, 2)] for *_, output in given]
    return [subprocess.CompletedProcess(case, code, *text) for case, code, text in zip(cases, codes, texts, strict=True)]


def write_to(output, errors):
    """Make two descriptors this process's stdout and stderr, with streams as an interpreter opens them."""
    for name, number, descriptor in (("stdout", 1, output), ("stderr", 2, errors)):
        os.dup2(descriptor, number)
        line_by_line = 1 if name == "stderr" or os.isatty(number) else -1
        rule = "backslashreplace" if name == "stderr" else "strict"
        setattr(sys, name, open(number, "w", line_by_line, "utf-8", rule, closefd=False))  # noqa: SIM115


def _inside(argv, streams, limits, before, module):
    write_to(*(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in streams))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if any(limits.values()):
        import resource

        if limits["RLIMIT_AS"] is not None:  # beyond what it has
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limits["RLIMIT_AS"] += pages * resource.getpagesize()
        for name, limit in limits.items():
            if limit is not None:  # RLIMIT_FSIZE: as `ulimit -f`, in bytes
                resource.setrlimit(getattr(resource, name), (limit, limit))
    exec(before, {})
    code = importlib.import_module(module).main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
