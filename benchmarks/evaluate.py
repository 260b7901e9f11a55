"""An evaluation: the published way one row at a time, our generate one row at a time, the engine's refilled batches.

The published evaluation pads every prompt on the left to the longest of the file; ours does not. All sides answer the same
prompts greedily with the same prefix, alternately in one process, and the answers must be equal
(in float32; in bfloat16 the share of equal answers is told). The two slow sides answer a part of the rows, spread over all
lengths; sides are compared by tokens a second, with the published way in the same dtype and with it in the first one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.machine import cell, json_line, table
from benchmarks.models import add_model_options, default_dtypes, device_of, made_model, made_prompts, tokenizer
from benchmarks.plain_generation import plain_copy
from ptuning.engine.generation import PRESETS, generate_answers

HEADS = (
    "way", "dtype", "rows", "median s", "spread", "rows/s", "tokens/s", "times as fast", "times first dtype",
    "equal answers",
)
PLAIN = "published way, one row at a time"
Answers = dict[int, list[int]]


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where float32 answers differ."""
    parser = argparse.ArgumentParser(prog="benchmark.sh evaluate", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--alone", type=int, default=16, help="rows that are answered one at a time")
    parser.add_argument("--file", help="real rows (columns content and summary); default: made-up ids of ADGEN's lengths")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a row at most")
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 64, 128])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--bits", type=int, choices=(0, 4, 8), default=0, help="packed weights")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    device = device_of(options)
    options.device = str(device)
    if options.size == "6b" and device.type == "cpu" and not options.bits:
        options.bits = 4
    options.dtypes = options.dtypes or default_dtypes(device)
    prompts, limits = made_prompts(options.rows, options.new, options.file)
    results: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        model = made_model(options.size, dtype, prefix=options.prefix, bits=options.bits, device=device)
        results += _compare(model, prompts, limits, dtype, options)
        del model
    first = results[0]["tokens/s"]
    for result in results:
        result["times first dtype"] = result["tokens/s"] / first
    print(table(HEADS, [[cell(result.get(head), 4) for head in HEADS] for result in results]))
    print(json_line("evaluate", vars(options), results))
    return 0 if all(result["equal answers"] == 1 for result in results if result["dtype"] == "float32") else 1


def _compare(
    model: Any, prompts: list[list[int]], limits: list[int], dtype: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    words = tokenizer()

    def engine(batch: int) -> Answers:
        generated = generate_answers(model, words, prompts, limits, batch_size=batch, preset=PRESETS["greedy"])
        return {answer.index: answer.ids for answer in generated}

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    few = sorted({order[place * len(order) // options.alone] for place in range(min(options.alone, len(order)))})
    ways: dict[str, Callable[[], Answers]] = {
        PLAIN: partial(one_at_a_time, plain_copy(model), words, prompts, limits, few, max(map(len, prompts))),
        "our generate, one row at a time": lambda: one_at_a_time(model, words, prompts, limits, few),
        **{f"engine, batch {batch}": partial(engine, batch) for batch in options.batches},
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Answers] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - began)
            rates[name].append(sum(map(len, answers[name].values())) / seconds[name][-1])
    plain = statistics.median(rates[PLAIN])
    reference = answers[PLAIN]
    return [
        {
            "way": name, "dtype": dtype, "rows": len(answers[name]), "median s": statistics.median(seconds[name]),
            "spread": (max(rate) - min(rate)) / statistics.median(rate),
            "rows/s": len(answers[name]) / statistics.median(seconds[name]), "tokens/s": statistics.median(rate),
            "times as fast": statistics.median(rate) / plain,
            "equal answers": sum(answers[name][n] == ids for n, ids in reference.items()) / len(reference),
        }
        for name, rate in rates.items()
    ]


@torch.no_grad()
def one_at_a_time(
    model: Any, words: Any, prompts: Sequence[list[int]], limits: Sequence[int], chosen: Sequence[int], width: int = 0
) -> Answers:
    """The answers of the chosen prompts, padded to ``width``, through a model's ``generate``, without ``<eop>``."""
    answers = {}
    for index in chosen:
        missing = max(0, width - len(prompts[index]))
        ids = [words.pad_token_id] * missing + prompts[index]
        mask = torch.tensor([[0] * missing + [1] * len(prompts[index])], device=model.device)
        generated = model.generate(
            torch.tensor([ids], device=model.device), attention_mask=mask, max_new_tokens=limits[index], do_sample=False,
            eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        )[0, len(ids) :].tolist()
        answers[index] = generated[: generated.index(words.eos_token_id)] if words.eos_token_id in generated else generated
    return answers
