"""One training step: our own, the published trainer's way, that way with one habit less at a time, and peft's prefix tuning.

All ways run alternately in one process on the same rows. Those on equal weights in float32 must give the same loss, and the
published way and ours the same gradient of the prefix. Peak memory is that of a process of its own for each of the ends.
The ceiling is the time that the products of our own step would take at the rate of large square products in that dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.machine import cell, json_line, products_per_second, table
from benchmarks.memory import resident
from benchmarks.models import add_model_options, default_dtypes, device_of, made_model, read_examples
from benchmarks.peft_baseline import PeftStep, importable
from benchmarks.plain_habits import HABITS, PlainStep, Row, batch_of, made_rows
from benchmarks.work import Work
from ptuning.kernels import dispatch

Options = argparse.Namespace
EVERY = tuple(HABITS.values())
HEADS = (
    "way", "median s", "least s", "most s", "times as fast", "of ceiling", "peak GB", "loss of the first step",
)
_LOSS_TOLERANCE, _GRADIENT_TOLERANCE = 1e-4, 1e-3


class Way(NamedTuple):
    """One way to take a step.

    Attributes:
        habits: values of ``HABITS``; None is peft's.
        dtype: of the frozen weights, of the activations where those are packed.
        bits: 0, 4 or 8.
    """

    habits: tuple[str, ...] | None
    dtype: str
    bits: int = 0


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where two ways disagree on a loss or a gradient."""
    options = _parse(arguments)
    if options.inside:
        print(json.dumps(_peak(options)))
        return 0
    results, checks = _times(options)
    for result in results:
        if "without" not in result["way"]:
            result["peak GB"] = _peak_in_subprocess(arguments, result["way"], options)
    print(table(HEADS, [[cell(result.get(head), 4) for head in HEADS] for result in results]))
    for check in checks:
        print(f"{check['what']}: largest difference of losses {check['loss']:.2e}, of gradients {check['gradient']:.2e}")
    if options.peft:
        print("peft runs transformers' GLM, another model: its loss is another number")
    print(json_line("train", vars(options), {"ways": results, "checks": checks}))
    return 0 if all(check["equal"] for check in checks) else 1


def _parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="benchmark.sh train", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser, "mid")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--source", type=int, default=64)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each way")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"), help="of our frozen weights")
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 8), default=[], help="packed weights as well")
    parser.add_argument("--memory", default=None, help="lean or fast[:GB], of packed weights; see PTUNING_MEMORY")
    parser.add_argument("--rows", metavar="FILE", help="real rows (columns content and summary); default: made-up ids")
    parser.add_argument("--habits", action=argparse.BooleanOptionalAction, default=True, help="one habit less at a time")
    parser.add_argument("--peft", action=argparse.BooleanOptionalAction, default=None, help="default: where it is installed")
    parser.add_argument("--peaks", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.device = str(device_of(options))
    half = options.device == "cuda" or options.size == "6b"
    options.dtypes = options.dtypes or default_dtypes(torch.device(options.device))
    if options.size == "6b" and not options.bits:
        options.bits = [4]
    if options.peft is None:
        options.peft = importable() and not half
    if options.memory:
        dispatch.configure(memory=options.memory)
        os.environ[dispatch.MEMORY_VARIABLE] = options.memory  # for the processes that measure peaks
    return options


def _ways(options: Options) -> dict[str, Way]:
    """Name → way. Float weights of 6.2 B are left out on a CPU: in float32 they are 25 GB."""
    ways: dict[str, Way] = {}
    first = options.dtypes[0]
    if options.size != "6b" or options.device == "cuda":
        ways["published way"] = Way(EVERY, first)
        if options.habits:
            ways |= {
                f"without: {name}": Way(tuple(other for other in EVERY if other != habit), first)
                for name, habit in HABITS.items()
            }
        ways |= {f"ptuning, {dtype}": Way((), dtype) for dtype in options.dtypes}
        if options.peft:
            ways["peft, transformers' GLM"] = Way(None, first)
    for bits in options.bits:
        ways[f"published way, INT{bits}"] = Way(EVERY, first, bits)
        ways |= {f"ptuning, INT{bits}, {dtype}": Way((), dtype, bits) for dtype in options.dtypes}
    return ways


class Bench:
    """The models of the ways, made when they are first needed, and the rows."""

    def __init__(self, options: Options) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.models: dict[tuple[str, int], Any] = {}
        self._peft: PeftStep | None = None
        self._rows: list[Row] = []

    def model(self, dtype: str, bits: int) -> Any:
        """A model in training mode; ways that need the same one share it."""
        if (dtype, bits) not in self.models:
            model = made_model(self.options.size, dtype, prefix=self.options.prefix, bits=bits, device=self.device)
            torch.nn.init.normal_(model.prefix_encoder.embedding.weight, std=0.02)
            self.models[dtype, bits] = model.train()
        return self.models[dtype, bits]

    def step(self, way: Way) -> tuple[Callable[[dict[str, Tensor]], float], list[Any]]:
        """What runs a step, and whose gradients it leaves."""
        if way.habits is None:
            if self._peft is None:
                config = self.model(*next(key for key in self.models if not key[1])).config
                self._peft = PeftStep(config, getattr(torch, way.dtype), self.options.prefix, self.device)
            return self._peft, self._peft.gradients()
        model = self.model(way.dtype, way.bits)
        return PlainStep(model, way.habits), list(model.prefix_encoder.parameters())

    def batch(self, number: int, padded: bool) -> dict[str, Tensor]:
        """The rows of one step."""
        options = self.options
        config = next(iter(self.models.values())).config
        if not self._rows and options.rows:
            self._rows = [(row.input_ids, row.labels) for row in read_examples(options.rows, options.source, options.target)]
        elif not self._rows:
            self._rows = made_rows(config, options.batch * (options.steps + 1), options.source, options.target)
        first = number * options.batch
        rows = [self._rows[place % len(self._rows)] for place in range(first, first + options.batch)]
        width = options.source + options.target if padded else None
        return batch_of(rows, config.pad_token_id, width, self.device)


def _times(options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    bench, ways = Bench(options), _ways(options)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    gradients: dict[str, Tensor] = {}
    for number in range(options.steps + 1):  # the first is not counted
        for name, way in ways.items():
            step, trained = bench.step(way)
            batch = bench.batch(number, way.habits is not None and "padding" in way.habits)
            began = _clock(bench.device)
            loss = step(batch)
            seconds[name].append(_clock(bench.device) - began)
            if number == 0:
                losses[name] = loss
                if way.habits in (EVERY, ()):
                    gradients[name] = trained[0].grad.detach().clone()
            for parameter in trained:  # every way must see the same prefix at every step; AdamW costs all of them the same
                parameter.grad = None
    slowest = {bits: statistics.median(seconds[_published(bits)][1:]) for bits in {way.bits for way in ways.values()}}
    results: list[dict[str, Any]] = [
        {
            "way": name, "median s": statistics.median(taken[1:]), "least s": min(taken[1:]), "most s": max(taken[1:]),
            "times as fast": slowest[ways[name].bits] / statistics.median(taken[1:]), "loss of the first step": losses[name],
        }
        for name, taken in seconds.items()
    ]
    _add_ceilings(results, ways, bench)
    return results, _checks(ways, losses, gradients)


def _add_ceilings(results: list[dict[str, Any]], ways: dict[str, Way], bench: Bench) -> None:
    """The share of the ceiling of every way on float weights (a counter does not see products with packed ones)."""
    own = next((way for way in ways.values() if way.habits == () and not way.bits), None)
    if own is None:
        return
    step, trained = bench.step(own)
    work = []
    for number in range(1, bench.options.steps + 1):
        with Work() as counter:
            step(bench.batch(number, False))
        work.append(counter.flops)
        for parameter in trained:
            parameter.grad = None
    dtypes = {way.dtype for way in ways.values() if not way.bits}
    rates = {dtype: products_per_second(bench.device, getattr(torch, dtype)) for dtype in dtypes}
    for result in results:
        way = ways[result["way"]]
        if not way.bits:
            result["of ceiling"] = statistics.median(work) / rates[way.dtype] / result["median s"]


def _published(bits: int) -> str:
    return f"published way, INT{bits}" if bits else "published way"


def _checks(ways: dict[str, Way], losses: dict[str, float], gradients: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Every way on the same weights in the published way's dtype beside it; float32 must be equal to rounding."""
    checks = []
    for bits in sorted({way.bits for way in ways.values()}):
        published = ways[_published(bits)]
        alike = [name for name, way in ways.items() if way.habits is not None and way[1:] == published[1:]]
        min_loss, max_loss = min(losses[name] for name in alike), max(losses[name] for name in alike)
        expected = gradients[_published(bits)]
        ours = [gradients[name] for name in alike if ways[name].habits == ()]
        off = max((float((gradient - expected).abs().max() / expected.abs().max()) for gradient in ours), default=0.0)
        equal = max_loss - min_loss < _LOSS_TOLERANCE and off < _GRADIENT_TOLERANCE
        checks.append(
            {
                "what": f"{f'INT{bits}' if bits else 'float'} weights in {published.dtype}", "loss": max_loss - min_loss,
                "gradient": off, "equal": equal or published.dtype != "float32",
            }
        )
    return checks


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_in_subprocess(arguments: list[str], way: str, options: Options) -> float | None:
    if not options.peaks:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "train", *arguments, "--inside", way],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _peak(options: Options) -> float:
    """Peak memory of two steps of one way, GB: what torch allocated on a GPU, resident memory elsewhere."""
    bench, way = Bench(options), _ways(options)[options.inside]
    if way.habits is None:
        made_for = Way((), "float32")
        bench.model(made_for.dtype, 0)  # for its shape; it must not count
        step, trained = bench.step(way)
        batches = [bench.batch(number, False) for number in range(2)]
        bench.models.clear()
    else:
        step, trained = bench.step(way)
        batches = [bench.batch(number, "padding" in way.habits) for number in range(2)]
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # what making the model took does not count
    for batch in batches:
        step(batch)
        for parameter in trained:
            parameter.grad = None
    return (torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else resident("VmHWM")) / 1e9
