"""Reading a prompt and decoding, by batch: the engine, our generate, and the published way of answering.

All sides answer the same prompts greedily with the same prefix, alternately in one process, every answer as long; they
must be equal in float32. A decode step is the time of the whole answer less that of its first token, by steps. The
ceiling is what it takes to read every weight that a step reads once.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.machine import cell, json_line, read_gigabytes_per_second, table
from benchmarks.models import add_model_options, bytes_a_token, device_of, made_model, tokenizer
from benchmarks.plain_generation import plain_copy
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams

HEADS = (
    "way", "weights", "batch", "prompt ms", "prompt tokens/s", "step ms", "spread", "tokens/s", "of ceiling",
    "times as fast", "equal tokens",
)
PLAIN = "published way"
Answer = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and the number of new tokens to the new tokens."""


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where float32 tokens differ."""
    parser = argparse.ArgumentParser(prog="benchmark.sh generate", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of every prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of every answer, after its first")
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--bits", type=int, nargs="+", choices=(0, 4, 8), help="0: float weights (default: 0, at 6b 4)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    device = device_of(options)
    options.device = str(device)
    options.bits = options.bits or [4 if options.size == "6b" else 0]
    options.dtypes = options.dtypes or (["float16"] if device.type == "cuda" else ["float32"])
    ceiling = read_gigabytes_per_second(device)
    results: list[dict[str, Any]] = []
    for bits in options.bits:
        for dtype in options.dtypes:
            model = made_model(options.size, dtype, prefix=options.prefix, bits=bits, device=device)
            weights = f"INT{bits}, {dtype}" if bits else dtype
            reading = bytes_a_token(model) / ceiling / 1e9  # before a kernel gives the weights another form
            results += [row for batch in options.batches for row in _compare(model, weights, batch, options, reading)]
            del model
    print(f"Memory read at {ceiling:.1f} GB/s.\n")
    print(table(HEADS, [[cell(result.get(head)) for head in HEADS] for result in results]))
    print(json_line("generate", {**vars(options), "ceiling GB/s": round(ceiling, 2)}, results))
    wrong = [result for result in results if result["equal tokens"] < 1 and result["weights"].endswith("float32")]
    return 1 if wrong else 0


def _compare(model: Any, weights: str, batch: int, options: argparse.Namespace, min_seconds: float) -> list[dict[str, Any]]:
    ways: dict[str, Answer] = {
        PLAIN: _by_generate(plain_copy(model)), "our generate": _by_generate(model), "engine": _by_engine(model, batch),
    }
    config, draw = model.config, random.Random(0)
    ends = [config.gmask_token_id, config.bos_token_id]
    prompts = [[draw.randrange(100, 1500) for _ in range(options.prompt - 2)] + ends for _ in range(batch)]
    first: dict[str, list[float]] = {name: [] for name in ways}
    step: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, list[list[int]]] = {}
    for repeat in range(-1, options.repeats):  # the first round warms up
        for name, answer in ways.items():
            first_seconds, _ = _timed(answer, prompts, 1, model.device)
            all_seconds, tokens[name] = _timed(answer, prompts, 1 + options.new, model.device)
            if repeat >= 0:
                first[name].append(first_seconds)
                step[name].append((all_seconds - first_seconds) / options.new)
    plain = statistics.median(step[PLAIN])
    rows = []
    for name in ways:
        reading, decoding = statistics.median(first[name]), statistics.median(step[name])
        equal = sum(ids == plain_ids for ids, plain_ids in zip(tokens[name], tokens[PLAIN], strict=True)) / batch
        rows.append(
            {
                "way": name, "weights": weights, "batch": batch, "prompt ms": 1000 * reading,
                "prompt tokens/s": batch * options.prompt / reading, "step ms": 1000 * decoding,
                "spread": (max(step[name]) - min(step[name])) / decoding, "tokens/s": batch / decoding,
                "of ceiling": min_seconds / decoding, "times as fast": plain / decoding,
                "times as fast, prompt": statistics.median(first[PLAIN]) / reading, "equal tokens": equal,
            }
        )
    return rows


def _timed(answer: Answer, prompts: list[list[int]], new: int, device: torch.device) -> tuple[float, list[list[int]]]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    tokens = answer(prompts, new)  # ids on the host: nothing is left to wait for
    return time.perf_counter() - began, tokens


def _by_generate(model: Any) -> Answer:
    def answer(prompts: list[list[int]], new: int) -> list[list[int]]:
        with torch.no_grad():
            ids = model.generate(
                torch.tensor(prompts, device=model.device), max_new_tokens=new, do_sample=False, eos_token_id=None,
                pad_token_id=model.config.pad_token_id,
            )
        answers: list[list[int]] = ids[:, len(prompts[0]) :].tolist()
        if len(answers[0]) != new:
            raise RuntimeError(f"{len(answers[0])} tokens came out where {new} were asked for")
        return answers

    return answer


def _by_engine(model: Any, batch: int) -> Answer:
    engine = Engine(model, tokenizer(), max_rows=batch, max_waiting=batch, prefill_tokens=1 << 30)
    engine.scheduler.end_ids = frozenset()  # every answer has the same length
    with torch.no_grad():
        states = model.prefix_key_values()
    prefix = None if states is None else engine.add_prefix("prefix", states)

    def answer(prompts: list[list[int]], new: int) -> list[list[int]]:
        greedy = SamplingParams(temperature=0, max_new_tokens=new)
        answers = {done.index: done.ids for done in engine.run([Request(ids, prefix, greedy) for ids in prompts])}
        return [answers[number] for number in range(len(prompts))]

    return answer
