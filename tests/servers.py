"""Servers in processes of their own, as their clients meet them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from processes import FORKS, write_to

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def running(verb, *flags, fresh=False, **environment):
    """``ptuning serve`` or ``ptuning web`` on a free port; gives its address and process.

    ``fresh``: an interpreter of its own, which imports everything first; otherwise it is forked from one that has.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(("API_", "GRADIO_", "WEB_"))}
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
    fresh = fresh or path != str(ROOT)
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment
    port = [] if "GRADIO_SERVER_PORT" in environment else ["--port", "0"]
    argv = [verb, *map(str, flags), "--device", "cpu", *port]
    process = _interpreter(argv, env) if fresh else ForkedServer(argv, env)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            pytest.fail("".join(lines))
        address = found[1].replace("0.0.0.0", "127.0.0.1")
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{address}/health")
                break
            time.sleep(0.05)
        process.log = lines
        yield address, process
    finally:
        _end(process)


def _interpreter(argv, env):
    command = [sys.executable, "-m", "ptuning", *argv]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def _end(process):
    """Ask it to end, and see that it does."""
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=30)
    except BaseException:
        process.kill()
        raise


class ForkedServer:
    """A server's process, used as ``subprocess.Popen`` is."""

    def __init__(self, argv, env):
        reader, writer = FORKS.Pipe(duplex=False)
        with reader, writer:
            self._process = FORKS.Process(target=_serve, args=(argv, env, writer), daemon=True)
            self._process.start()
            self.stderr = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        self.pid = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self):
        """Its exit code; None while it runs."""
        return self._process.exitcode

    def poll(self):
        """The same."""
        return self.returncode

    def send_signal(self, number):
        """Send a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout):
        """Wait for its end; its exit code."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("ptuning", timeout)
        return self.poll()

    def communicate(self, timeout):
        """Read what it still says until its end, where that was not done before."""
        said = "" if self.stderr.closed else self.stderr.read()
        self.stderr.close()
        self.wait(timeout)
        return None, said


def _serve(argv, env, writer):
    write_to(1, writer.fileno())
    writer.close()
    os.environ.clear()
    os.environ.update(env)  # gradio, which reads some of it when it is imported, is not there yet
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from ptuning.edges.cli import main

    code = main(argv)
    sys.stderr.flush()
    os._exit(code)


def wait_for(condition, seconds=20):
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
