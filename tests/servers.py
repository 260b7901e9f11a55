"""Servers in processes of their own, as their clients meet them."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def running(verb, *flags, **environment):
    """``ptuning serve`` or ``ptuning web`` on a free port; gives its address and process."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("API_", "GRADIO_", "WEB_"))}
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment
    port = [] if "GRADIO_SERVER_PORT" in environment else ["--port", "0"]
    command = [sys.executable, "-m", "ptuning", verb, *map(str, flags), "--device", "cpu", *port]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, encoding="utf-8")
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
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def wait_for(condition, seconds=20):
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
