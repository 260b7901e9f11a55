"""One training step: our own, the published trainer's way, and that way with one habit less at a time.

All ways run alternately in one process on the same rows and must give the same loss. Peak memory is that of a process of
its own for each of the two ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import json_line, table
from benchmarks.memory import IDS, resident
from benchmarks.plain_habits import HABITS, PlainStep, batches
from ptuning.blocks.config import ChatGLMConfig
from ptuning.blocks.prefix_encoder import PrefixEncoder, prefix_config_of
from ptuning.tuned.model import ChatGLMForConditionalGeneration

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 4096, "hidden_size": 256, "num_layers": 4, "num_attention_heads": 4, "inner_hidden_size": 1024,
    },
    "mid": {
        "vocab_size": 130528, "hidden_size": 1024, "num_layers": 8, "num_attention_heads": 16, "inner_hidden_size": 4096,
    },
}
Options = argparse.Namespace


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where two ways disagree on a loss."""
    parser = argparse.ArgumentParser(prog="benchmark.sh train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="mid")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--source", type=int, default=64)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="steps of each way")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"), help="of our weights")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        print(json.dumps(_peak(options)))
        return 0
    results, agree = _times(options)
    for result in results:
        if result["way"] in ("published way", *(f"ptuning, {dtype}" for dtype in options.dtypes)):
            result["peak GB"] = _peak_in_subprocess(arguments, result["way"])
    heads = ("way", "median s", "least s", "most s", "times as fast", "peak GB", "loss of the first step")
    print(table(heads, [[_cell(result.get(head)) for head in heads] for result in results]))
    print(json_line("train", vars(options), results))
    return 0 if agree else 1


def _times(options: Options) -> tuple[list[dict[str, Any]], bool]:
    ways = _ways(options)
    models = {dtype: random_model(options.size, dtype, options.prefix) for dtype in {way[1] for way in ways.values()}}
    rows = {padded: list(_batches(options, padded)) for padded in (True, False)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.steps + 1):  # the first is not counted
        for name, (habits, dtype) in ways.items():
            batch = rows["padding" in habits][number]
            step = PlainStep(models[dtype], habits)
            began = time.perf_counter()
            losses[name].append(step(batch))
            _optimise(models[dtype])
            seconds[name].append(time.perf_counter() - began)
    slowest = statistics.median(seconds["published way"][1:])
    results = [
        {
            "way": name, "median s": statistics.median(taken[1:]), "least s": min(taken[1:]), "most s": max(taken[1:]),
            "times as fast": slowest / statistics.median(taken[1:]), "loss of the first step": losses[name][0],
        }
        for name, taken in seconds.items()
    ]
    exact = [losses[name][0] for name, (_, dtype) in ways.items() if dtype == "float32"]
    return results, max(exact) - min(exact) < 1e-4


def _ways(options: Options) -> dict[str, tuple[tuple[str, ...], str]]:
    """Name → habits and dtype of the frozen weights."""
    every = tuple(HABITS.values())
    ways = {"published way": (every, "float32")}
    for name, habit in HABITS.items():
        ways[f"without: {name}"] = (tuple(other for other in every if other != habit), "float32")
    return ways | {f"ptuning, {dtype}": ((), dtype) for dtype in options.dtypes}


def random_model(
    size: str, dtype: str, prefix: int, special: dict[str, int] | None = None
) -> ChatGLMForConditionalGeneration:
    """A frozen model of random weights with a random prefix (no dropout), in training mode."""
    torch.manual_seed(0)
    model: Any = ChatGLMForConditionalGeneration(ChatGLMConfig(**SIZES[size], **(special or IDS)))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 2:
            parameter.normal_(0, 0.02)
    model = model.to(getattr(torch, dtype))
    encoder = PrefixEncoder(prefix_config_of(model.config, prefix, False, dropout=0.0))
    torch.nn.init.normal_(encoder.embedding.weight, std=0.02)
    encoder.fresh = False
    model.attach_prefix(encoder)
    trained: ChatGLMForConditionalGeneration = model.train()
    return trained


def _batches(options: Options, padded: bool) -> Any:
    config = ChatGLMConfig(**SIZES[options.size], **IDS)
    return batches(config, options.batch, options.steps + 1, options.source, options.target, padded)


def _optimise(model: Any) -> None:
    """The gradient is dropped: every way must see the same prefix at every step, and AdamW costs all of them the same."""
    for parameter in model.prefix_encoder.parameters():
        parameter.grad = None


def _peak_in_subprocess(arguments: list[str], way: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "train", *arguments, "--inside", way],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _peak(options: Options) -> float:
    """Peak resident memory of two steps of one way, GB."""
    habits, dtype = _ways(options)[options.inside]
    model = random_model(options.size, dtype, options.prefix)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # what making the model took does not count
    for _, batch in zip(range(2), _batches(options, "padding" in habits), strict=False):
        PlainStep(model, habits)(batch)
        _optimise(model)
    return resident("VmHWM") / 1e9


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
