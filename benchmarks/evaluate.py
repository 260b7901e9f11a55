"""An evaluation: one row at a time through transformers' generate, as published, against the engine's refilled batches.

Both sides answer the same prompts greedily with the same prefix, alternately in one process, and the answers must be equal
(in float32; in bfloat16 the share of equal answers is told).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.machine import json_line, table
from benchmarks.train import SIZES, random_model
from ptuning.blocks.prefix_encoder import PrefixEncoder, prefix_config_of
from ptuning.loops.generation import PRESETS, generate_answers
from ptuning.tuned.hub import embedded_folder
from ptuning.tuned.load import load_model, load_tokenizer


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where float32 answers differ."""
    parser = argparse.ArgumentParser(prog="benchmark.sh evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("built-in", *sorted(SIZES)), default="built-in")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new", type=int, default=64, help="new tokens of a row at most")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        model, tokenizer = _model(options.size, dtype)
        prompts = _prompts(model, options.rows)
        limits = _limits(options.rows, options.new)
        results += _compare(model, tokenizer, prompts, limits, dtype, options)
    heads = ("way", "dtype", "median s", "rows/s", "tokens/s", "times as fast", "equal answers")
    print(table(heads, [[_cell(result.get(head)) for head in heads] for result in results]))
    print(json_line("evaluate", vars(options), results))
    return 0 if all(result["equal answers"] == 1 for result in results if result["dtype"] == "float32") else 1


def _model(size: str, dtype: str) -> tuple[Any, Any]:
    """A model with a prefix of 32 tokens, and the built-in tokenizer (its special ids serve every size)."""
    tokenizer = load_tokenizer(embedded_folder())
    if size == "built-in":
        model = load_model(embedded_folder(), device="cpu", dtype=dtype)
        torch.manual_seed(0)
        encoder = PrefixEncoder(prefix_config_of(model.config, 32, False, dropout=0.0))
        encoder.fresh = False
        model.attach_prefix(encoder)
    else:
        model = random_model(size, dtype, prefix=32, special=model_ids(tokenizer))
    return model.eval(), tokenizer


def model_ids(tokenizer: Any) -> dict[str, int]:
    """The special ids of a tokenizer, as a config names them."""
    return {
        name: getattr(tokenizer, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
    }


def _prompts(model: Any, rows: int) -> list[list[int]]:
    """Prompts of 16 to 64 ids."""
    draw, config = random.Random(0), model.config
    ends = [config.gmask_token_id, config.bos_token_id]
    return [[draw.randrange(100, 1500) for _ in range(draw.randint(14, 62))] + ends for _ in range(rows)]


def _limits(rows: int, new: int) -> list[int]:
    """Random weights never end an answer: limits of a quarter to the whole stand for real answers' lengths."""
    draw = random.Random(1)
    return [draw.randint(max(1, new // 4), new) for _ in range(rows)]


def _compare(
    model: Any, tokenizer: Any, prompts: list[list[int]], limits: list[int], dtype: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    def engine(batch: int) -> dict[int, list[int]]:
        found = generate_answers(model, tokenizer, prompts, limits, batch_size=batch, preset=PRESETS["greedy"])
        return {answer.index: answer.ids for answer in found}

    ways: dict[str, Callable[[], dict[int, list[int]]]] = {
        "one row at a time, generate": lambda: _one_at_a_time(model, tokenizer, prompts, limits),
        **{f"engine, batch {batch}": partial(engine, batch) for batch in options.batches},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, dict[int, list[int]]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - began)
    plain = next(iter(ways))
    slowest = statistics.median(seconds[plain])
    tokens = sum(len(ids) for ids in answers[plain].values())
    return [
        {
            "way": name, "dtype": dtype, "median s": statistics.median(taken),
            "rows/s": len(prompts) / statistics.median(taken),
            "tokens/s": tokens / statistics.median(taken), "times as fast": slowest / statistics.median(taken),
            "equal answers": sum(answers[name][n] == ids for n, ids in answers[plain].items()) / len(prompts),
        }
        for name, taken in seconds.items()
    ]


@torch.no_grad()
def _one_at_a_time(model: Any, tokenizer: Any, prompts: list[list[int]], limits: list[int]) -> dict[int, list[int]]:
    found = {}
    for index, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
        made = model.generate(
            torch.tensor([ids]), max_new_tokens=limit, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(ids) :].tolist()
        found[index] = made[: made.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in made else made
    return found


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
