"""``benchmark.sh all``: every benchmark with modest settings, each in a process of its own, one after the other.

The JSON lines go into one file, from which ``benchmark.sh record`` makes the tables of docs/performance.md. A benchmark that
fails does not keep the others from running.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.models import add_model_options, device_of

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("train", "half_loss", "generate", "evaluate", "quantization", "serving", "startup", "growth")
# What each does beside the size. A mid-size model answers one row at a time at a few tokens a second; of 6.2 B packed
# weights the published way makes every one float for every token, which takes a CPU half a minute.
_MODEST = {
    "train": {"tiny": "--steps 5 --bits 4", "mid": "--steps 3 --bits 4", "6b": "--steps 1 --batch 1 --no-habits"},
    "half_loss": {"tiny": "--steps 200", "mid": "", "6b": ""},
    "generate": {"tiny": "--bits 0 4", "mid": "--bits 0 4 --repeats 2", "6b": "--repeats 1 --batches 1 8 --new 4"},
    "evaluate": {"tiny": "", "mid": "--alone 8 --repeats 1", "6b": "--alone 1 --rows 16 --batches 8 --repeats 1 --new 8"},
    "quantization": {"tiny": "", "mid": "", "6b": "--rows 1 8 32 128"},
    "serving": {"tiny": "", "mid": "--repeats 1 --new 24", "6b": "--repeats 1 --new 8 --clients 1 8 --alone 2"},
    "startup": {"tiny": "", "mid": "", "6b": ""},
    "growth": {"tiny": "", "mid": "--prompts 128 2048 --prefix-rows 64 --prefixes 1 64 --repeats 1", "6b": ""},
}
_TINY_ONLY = ("half_loss", "startup")


def commands(size: str, device: str, names: tuple[str, ...] = NAMES, file: str | None = None) -> dict[str, list[str]]:
    """Name → arguments of ``python -m benchmarks``.

    Args:
        size: tiny, mid or 6b.
        device: cpu or cuda.
        names: which benchmarks.
        file: real rows for training and evaluation, where there are some.
    """
    words_by_name: dict[str, list[str]] = {}
    for name in names:
        chosen = "tiny" if name in _TINY_ONLY else "mid" if (name, size) == ("growth", "6b") else size
        words = [name, *([] if name == "startup" else ["--size", chosen, "--device", device])]
        words += shlex.split(_MODEST[name][chosen])
        if file is not None and name in ("train", "evaluate"):
            words += ["--rows" if name == "train" else "--file", file]
        words_by_name[name] = words
    return words_by_name


def main(arguments: list[str]) -> int:
    """Run them and collect their JSON lines; 1 where one failed, with the names of those that did."""
    parser = argparse.ArgumentParser(prog="benchmark.sh all", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--output", default="benchmarks.jsonl", help="the file of JSON lines, overwritten")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--file", help="real rows for train and evaluate (columns content and summary)")
    options = parser.parse_args(arguments)
    device, output = device_of(options).type, Path(options.output)
    output.write_text("", encoding="utf-8")
    failed = []
    file = None if options.file is None else str(Path(options.file).resolve())
    for name, words in commands(options.size, device, tuple(options.only), file).items():
        print(f"\n== benchmark.sh {shlex.join(words)}", flush=True)
        began = time.perf_counter()
        code, line = run(words)
        if line is not None:
            with output.open("a", encoding="utf-8") as lines:
                lines.write(line)
        if code or line is None:
            failed.append(name)
        print(f"== {name}: {'failed' if code else 'done'} in {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\nJSON lines: {output}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(words: list[str]) -> tuple[int, str | None]:
    """One benchmark in a process of its own, its output passed on; its exit code and its JSON line."""
    line = None
    command = [sys.executable, "-m", "benchmarks", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout or ():
            if text.startswith('{"benchmark"'):
                line = text
            else:
                print(text, end="", flush=True)
    return process.returncode, line
