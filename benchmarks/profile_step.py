"""The operators that a training step and a decode step of the engine spend their time in.

Time is an operator's own, without what it calls, as torch's profiler counts it; on a GPU it is time on the GPU. What the
native kernel does, which the profiler does not see, is counted under ``native``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.machine import cell, json_line, table
from benchmarks.models import add_model_options, device_of, made_model, read_examples, tokenizer
from benchmarks.plain_habits import HABITS, PlainStep, batch_of, made_rows
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams
from ptuning.kernels import dispatch, native

HEADS = ("step", "operator", "calls", "ms", "share")
NATIVE = ("product", "input_gradient", "half_product", "attend", "screen", "gelu")


def main(arguments: list[str]) -> int:
    """Profile, print a table and one JSON line."""
    parser = argparse.ArgumentParser(prog="benchmark.sh profile_step", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser, "mid")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--bits", type=int, choices=(0, 4, 8), help="packed weights (default: 4 at 6b, else 0)")
    parser.add_argument("--steps", type=int, default=3, help="profiled steps, after one that warms up")
    parser.add_argument("--batch", type=int, default=4, help="rows of the training step")
    parser.add_argument("--rows", type=int, default=8, help="rows of the decode step")
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--file", help="real rows for training (columns content and summary)")
    parser.add_argument("--top", type=int, default=10, help="operators shown")
    parser.add_argument("--published", action="store_true", help="the published trainer's step as well")
    options = parser.parse_args(arguments)
    device = device_of(options)
    options.device = str(device)
    options.bits = (4 if options.size == "6b" else 0) if options.bits is None else options.bits
    model = made_model(options.size, options.dtype, prefix=options.prefix, bits=options.bits, device=device)
    results: list[dict[str, Any]] = []
    if options.published:
        results += _profiled("published training step", _training(model, options, tuple(HABITS.values())), options)
    results += _profiled("training step", _training(model, options, ()), options)
    results += _profiled("decode step", _decoding(model, options), options)
    print(table(HEADS, [[cell(result[head]) for head in HEADS] for result in results]))
    print(json_line("profile_step", vars(options), results))
    return 0


def _profiled(name: str, step: Callable[[], Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The operators with most time of their own, what is left, and the whole."""
    step()
    on_gpu = options.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with native_ranges(), profile(activities=activities) as profiler:
        for _ in range(options.steps):
            step()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / options.steps

    events = sorted(profiler.key_averages(), key=own, reverse=True)
    whole = sum(map(own, events)) or 1.0
    rows: list[dict[str, Any]] = [
        {
            "step": name, "operator": event.key, "calls": event.count / options.steps, "ms": own(event),
            "share": own(event) / whole,
        }
        for event in events[: options.top]
    ]
    rest = events[options.top :]
    left = sum(map(own, rest))
    rows.append(
        {
            "step": name, "operator": f"{len(rest)} others", "calls": sum(event.count for event in rest) / options.steps,
            "ms": left, "share": left / whole,
        }
    )
    return [*rows, {"step": name, "operator": "all", "calls": None, "ms": whole, "share": 1.0}]


@contextmanager
def native_ranges() -> Iterator[None]:
    """The native kernel's functions show up in profiles."""
    held = {name: getattr(native, name) for name in NATIVE}

    def shown(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with record_function(f"native::{name}"):
                return held[name](*args)

        return call

    try:
        for name in NATIVE:
            setattr(native, name, shown(name))
        dispatch.start.cache_clear()  # a started kernel holds its products,
        dispatch.has_native()  # and tries them out when it starts
        yield
    finally:
        for name, function in held.items():
            setattr(native, name, function)
        dispatch.start.cache_clear()


def _training(model: Any, options: argparse.Namespace, habits: tuple[str, ...]) -> Callable[[], Any]:
    config = model.config
    if options.file:
        rows = [(row.input_ids, row.labels) for row in read_examples(options.file, 64, 64)[: options.batch]]
    else:
        rows = made_rows(config, options.batch, 64, 64)
    batch = batch_of(rows, config.pad_token_id, 128 if habits else None, model.device)
    run = PlainStep(model, habits)

    def step() -> None:
        model.train()
        run(batch)
        for parameter in model.prefix_encoder.parameters():
            parameter.grad = None

    return step


def _decoding(model: Any, options: argparse.Namespace) -> Callable[[], Any]:
    """Steps of an engine all of whose rows run."""
    engine = Engine(model, tokenizer(), max_rows=options.rows)
    engine.scheduler.end_ids = frozenset()
    with torch.no_grad():
        prefix = engine.add_prefix("prefix", model.prefix_key_values())
    ends = [model.config.gmask_token_id, model.config.bos_token_id]
    greedy = SamplingParams(temperature=0, max_new_tokens=1000)
    engine.submit([Request([100 + row] * 62 + ends, prefix, greedy) for row in range(options.rows)])
    engine.step()
    return engine.step
