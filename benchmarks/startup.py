"""Seconds to ``ptuning --help``, to the first prompt of ``ptuning chat``, and to the first step of a training.

Each is a process of its own, several times; the median counts. The chat runs in a terminal of its own (a pty), as for a
person, and is timed from outside. The training runs the settings of ``configs/tiny.yaml`` until its first optimiser step;
the time that imports took, wherever they stand, is counted apart. Beside them: the same packages imported at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import cell, json_line, table

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch", "transformers", "accelerate", "datasets", "pandas", "pyarrow", "matplotlib", "jieba", "nltk", "rouge_chinese",
    "scipy", "sklearn", "gradio", "fastapi", "uvicorn", "peft", "tensorboard", "prompt_toolkit", "sacrebleu",
)
HEADS = ("start", "median s", "least s", "most s", "goal s", "met", "heavy modules")
_EAGER = "import torch, transformers, transformers.trainer, datasets, jieba, nltk, rouge_chinese, matplotlib.pyplot"
_LIST = "print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=open({path!r}, 'w'))"
_PROMPT = "You:"  # the blank after it is a movement of the cursor
_PATIENCE = 120.0


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="benchmark.sh startup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--goals", type=float, nargs=3, default=[1.0, 4.0, 3.0], help="seconds: help, chat, first step")
    options = parser.parse_args(arguments)
    help_goal, chat_goal, step_goal = options.goals
    ways: list[tuple[str, float | None, Callable[[Path], float]]] = [
        ("ptuning --help", help_goal, _help),
        ("ptuning chat, first prompt", chat_goal, _chat),
        ("ptuning train, first step without imports", step_goal, _training),
        ("everything imported at once", None, _eager),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    modules: dict[str, list[str]] = {}
    details: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        # A first round that is not counted fills the system's file cache.
        for repeat in range(-1 if options.repeats > 1 else 0, options.repeats):
            for name, _, start in ways:
                taken = start(Path(place))
                if repeat >= 0:
                    seconds[name].append(taken)
                    if start is _training:
                        details.append(json.loads((Path(place) / "seconds").read_text(encoding="utf-8")))
                modules[name] = json.loads((Path(place) / "modules").read_text(encoding="utf-8"))
    results: list[dict[str, Any]] = []
    for name, goal, _ in ways:
        median = statistics.median(seconds[name])
        results.append(
            {
                "start": name, "median s": median, "least s": min(seconds[name]), "most s": max(seconds[name]),
                "goal s": goal, "met": None if goal is None else median <= goal, "heavy modules": modules[name],
            }
        )
    results[2]["imports s"] = statistics.median(one["imports"] for one in details)
    rows = [{**result, "heavy modules": ", ".join(result["heavy modules"]) or "none"} for result in results]
    print(table(HEADS, [[cell(row.get(head)) for head in HEADS] for row in rows]))
    print(f"imports of the training: {results[2]['imports s']:.2f} s")
    print(json_line("startup", vars(options), results))
    return 0 if all(result["met"] is not False for result in results) else 1


def _command(place: Path, code: str) -> list[str]:
    """Run a piece of Python and list the heavy modules at its end."""
    listing = _LIST.format(heavy=HEAVY, path=str(place / "modules"))
    return [sys.executable, "-c", f"import atexit, json, sys\natexit.register(lambda: {listing})\n{code}"]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}


def _timed(command: list[str], place: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=place, env=_environment(), capture_output=True, text=True, check=False)
    taken = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return taken


def _help(place: Path) -> float:
    return _timed(_command(place, "from ptuning.edges.cli import main\nmain(['--help'])"), place)


def _eager(place: Path) -> float:
    return _timed(_command(place, _EAGER), place)


def _chat(place: Path) -> float:
    """Until the prompt of a person's terminal stands there; the program is then left as a person would."""
    import pty
    import select

    code = "from ptuning.edges.cli import main\nsys.exit(main(['chat', '--lang', 'en']))"
    ours, theirs = pty.openpty()
    began = time.perf_counter()
    process = subprocess.Popen(
        _command(place, code), cwd=place, env=_environment(), stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    seen, taken = "", None
    try:
        while taken is None:
            left = began + _PATIENCE - time.perf_counter()
            if left <= 0 or not select.select([ours], [], [], left)[0]:
                raise RuntimeError(f"no prompt within {_PATIENCE:.0f} s; there stands: {seen[-500:]}")
            seen += os.read(ours, 65536).decode("utf-8", "replace")
            if _PROMPT in seen:
                taken = time.perf_counter() - began
        os.write(ours, b"stop\r")
        while process.poll() is None and select.select([ours], [], [], _PATIENCE)[0]:
            try:
                seen += os.read(ours, 65536).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                break
        if process.wait(_PATIENCE):
            raise RuntimeError(seen[-2000:])
    finally:
        if process.poll() is None:
            process.kill()
        os.close(ours)
    return taken


_TRAINING = """
import time
began = time.perf_counter()
import builtins, importlib, os
spent, depth, original, original_module = 0.0, 0, builtins.__import__, importlib.import_module

def counted(function):
    def call(*args, **kwargs):
        global spent, depth
        depth += 1
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            depth -= 1
            if depth == 0:
                spent += time.perf_counter() - start
    return call

builtins.__import__, importlib.import_module = counted(original), counted(original_module)

def first_step(optimiser, args, kwargs):
    whole = time.perf_counter() - began
    with open({seconds!r}, "w") as file:
        json.dump({{"whole": whole, "imports": spent, "rest": whole - spent}}, file)
    with open({modules!r}, "w") as file:
        json.dump([name for name in {heavy!r} if name in sys.modules], file)
    os._exit(0)

import ptuning.edges.cli
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(first_step)
sys.exit(ptuning.edges.cli.main(["train", {config!r}, "--output_dir", {output!r}, "--device", "cpu"]) or 1)
"""


def _training(place: Path) -> float:
    """From the start of Python to the end of the first optimiser step, without what imports took. Prepared rows of an
    earlier run are not used: the cache is the run's own."""
    with tempfile.TemporaryDirectory() as own:
        code = "import json, sys\n" + _TRAINING.format(
            seconds=str(place / "seconds"), modules=str(place / "modules"), heavy=HEAVY,
            config=str(ROOT / "configs" / "tiny.yaml"), output=str(Path(own) / "run"),
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**_environment(), "PTUNING_CACHE": own}, capture_output=True,
            text=True, check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
    return float(json.loads((place / "seconds").read_text(encoding="utf-8"))["rest"])
