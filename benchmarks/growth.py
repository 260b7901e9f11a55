"""Cost against prompt length, batch, prefix length and number of prefixes: reading prompts, and one decode step.

One thing grows at a time, by doubling, through the generation engine. Between neighbours the exponent of the growth is told
(1: twice the size, twice the time); what grows faster than linear is flagged. Attention over a prompt is quadratic by
nature, so for prompts the time of attention alone, on tensors of the same shapes, is taken off before the exponent.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.machine import cell, json_line, median_seconds, table
from benchmarks.models import add_model_options, device_of, made_model, random_encoder, tokenizer
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams

HEADS = ("what grows", "size", "prompt ms", "attention ms", "exponent", "step ms", "step exponent", "flag")
POSITIONS = 8192
_NOISE = 1.15  # exponents up to here count as linear
_SHORT = 2e-3  # seconds; what takes less is mostly overhead, and its exponents are noise
_STEPS = 12


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(prog="benchmark.sh growth", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--prompts", type=int, nargs=2, default=[128, POSITIONS], help="least and most tokens of a prompt")
    parser.add_argument("--batches", type=int, nargs=2, default=[1, 64])
    parser.add_argument("--prefix-lengths", type=int, nargs=2, default=[1, 512])
    parser.add_argument("--prefixes", type=int, nargs=2, default=[1, 256], help="different prefixes of one batch")
    parser.add_argument("--prefix-rows", type=int, default=256, help="rows of that batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plots", metavar="FOLDER", help="draw the curves there")
    options = parser.parse_args(arguments)
    device = device_of(options)
    options.device = str(device)
    bits = 4 if options.size == "6b" else 0
    model = made_model(options.size, options.dtype, bits=bits, device=device, positions=POSITIONS + 2 * _STEPS)
    results = _axes(Bench(model, options.repeats), options)
    fits = {name: fit([row for row in results if row["what grows"] == name]) for name in axis_names(results)}
    flags = [f"{row['what grows']} {row['size']}: {row['flag']}" for row in results if row["flag"]]
    print(table(HEADS, [[cell(row.get(head)) for head in HEADS] for row in results]))
    for name, exponents in fits.items():
        print(f"{name}, over the whole range: reading {exponents['reading']:.2f}, decoding {exponents['decoding']:.2f}")
    print("worse than linear: " + ("; ".join(flags) or "nothing"))
    if options.plots:
        from benchmarks.plots import draw_growth

        print(f"drawn: {draw_growth(results, options.plots)}")
    print(json_line("growth", vars(options), {"rows": results, "fits": fits, "flags": flags}))
    return 0


class Bench:
    """One model, and what reading and decoding cost at one point.

    Args:
        model: without a prefix.
        repeats: measurements of reading; the median counts. What takes longer than a second is measured once.
    """

    def __init__(self, model: Any, repeats: int) -> None:
        self.model, self.repeats, self.words = model, repeats, tokenizer()

    def point(self, tokens: int, rows: int, length: int, prefixes: int) -> tuple[float, float]:
        """Seconds to read ``rows`` prompts of ``tokens`` tokens, each with one of the prefixes, and of one decode step."""
        config = self.model.config
        engine = Engine(self.model, self.words, max_rows=rows, max_waiting=rows, prefill_tokens=1 << 40)
        engine.scheduler.end_ids = frozenset()
        torch.manual_seed(0)
        shared = []
        with torch.no_grad():
            for number in range(prefixes):
                encoder = random_encoder(config, length).to(self.model.device)
                shared.append(engine.add_prefix(str(number), encoder(self.model.dtype)))
        ends = [config.gmask_token_id, config.bos_token_id]
        prompts = [[100 + (7 * row + column) % 1400 for column in range(tokens - 2)] + ends for row in range(rows)]

        def ask(new: int) -> None:
            greedy = SamplingParams(temperature=0, max_new_tokens=new)
            engine.submit([Request(ids, shared[row % prefixes], greedy) for row, ids in enumerate(prompts)])

        def read() -> None:
            ask(1)  # its first token comes from the prompt: no step follows
            engine.step()

        ask(2 + _STEPS)  # the cache gets its size, and what is made once is made
        steps = []
        while engine.running or engine.waiting:
            steps.append(_timed(engine.step, self.model.device))
        reading = [_timed(read, self.model.device)]
        while len(reading) < self.repeats and reading[0] < 1:
            reading.append(_timed(read, self.model.device))
        return statistics.median(reading), statistics.median(steps[1:])

    def attention(self, tokens: int, length: int) -> float:
        """Seconds of all layers' attention over one prompt, alone."""
        config, device, dtype = self.model.config, self.model.device, self.model.dtype
        heads, size = config.num_attention_heads, config.head_dim
        query = torch.randn(1, heads, tokens, size, device=device, dtype=dtype)
        key = torch.randn(1, heads, length + tokens, size, device=device, dtype=dtype)
        seen = torch.ones(1, 1, tokens, length + tokens, dtype=torch.bool, device=device)
        run: Callable[[], Any] = lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=seen)  # noqa: E731
        with torch.inference_mode():
            return config.num_layers * median_seconds(run, device, repeats=self.repeats)


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def doubled(ends: Sequence[int]) -> list[int]:
    """Sizes from the smallest to the largest by doubling."""
    smallest, largest = ends
    return [size for size in (smallest << place for place in range(64)) if size <= largest]


def _axes(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    axes: list[tuple[str, list[int], Callable[[int], tuple[int, int, int, int]]]] = [
        ("prompt length", doubled(options.prompts), lambda size: (size, 1, 16, 1)),
        ("batch", doubled(options.batches), lambda size: (64, size, 16, 1)),
        ("prefix length", doubled(options.prefix_lengths), lambda size: (64, 4, size, 1)),
        ("number of prefixes", doubled(options.prefixes), lambda size: (8, options.prefix_rows, 16, size)),
    ]
    for name, sizes, point in axes:
        rows: list[dict[str, Any]] = []
        for size in sizes:
            reading, step = bench.point(*point(size))
            row = {"what grows": name, "size": size, "prompt ms": 1000 * reading, "step ms": 1000 * step}
            if name == "prompt length":
                row["attention ms"] = 1000 * bench.attention(size, 16)
            rows.append(row)
        add_exponents(rows)
        results += rows
    return results


def add_exponents(rows: list[dict[str, Any]]) -> None:
    """Exponents of the growth between neighbours, and a flag where one is beyond linear.

    Args:
        rows: of one axis, sizes rising; ``attention ms`` is taken off ``prompt ms`` where there is one.
    """
    for row in rows:
        row["flag"] = ""
    for before, row in pairwise(rows):
        wider = math.log(row["size"] / before["size"])
        for time_of, name, what in ((_reading, "exponent", "reading"), (_step, "step exponent", "decoding")):
            earlier, later = time_of(before), time_of(row)
            row[name] = math.log(later / earlier) / wider
            if row[name] > _NOISE and earlier > 1000 * _SHORT:
                row["flag"] = f"{row['flag']}{', ' if row['flag'] else ''}{what} {row[name]:.2f}"


def axis_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What grew, in order."""
    return list(dict.fromkeys(row["what grows"] for row in rows))


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Exponents of one axis over its whole range: the slopes of straight lines through the logarithms."""
    if len(rows) < 2:
        return {"reading": 0.0, "decoding": 0.0}
    sizes = [math.log(row["size"]) for row in rows]
    return {
        what: statistics.linear_regression(sizes, [math.log(time_of(row)) for row in rows]).slope
        for what, time_of in (("reading", _reading), ("decoding", _step))
    }


def _reading(row: dict[str, Any]) -> float:
    return max(1e-3, float(row["prompt ms"]) - float(row.get("attention ms", 0.0)))


def _step(row: dict[str, Any]) -> float:
    return float(row["step ms"])
