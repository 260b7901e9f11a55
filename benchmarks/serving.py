"""Serving: clients that ask again as soon as they are answered, against one answer at a time; one prefix against many.

The same prompts are answered greedily, in one process, all ways alternately: by transformers' generate one at a time, by the
engine one at a time, and by the engine for 1, 8, 32 and 64 clients. The engine is asked directly: sockets and JSON are not
measured. Every answer has the same number of tokens, and the engine's are held against generate's (random weights may tie).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch

from benchmarks.machine import json_line, table
from benchmarks.models import add_model_options, device_of, made_model, random_encoder, tokenizer
from ptuning.engine.engine import Engine
from ptuning.engine.prefix_pool import SharedPrefix
from ptuning.engine.request import Generation, Request
from ptuning.engine.sampling_params import SamplingParams

HEADS = ("way", "clients", "prefixes", "tokens/s", "spread", "requests/s", "first token p50 ms", "p99 ms", "times as fast")


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where answers differ on tiny-chatglm."""
    parser = argparse.ArgumentParser(prog="benchmark.sh serving", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--bits", type=int, choices=(0, 4, 8), help="packed weights (default: 4 at 6b, else 0)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prefixes", type=int, nargs="+", default=[1, 8, 32], help="how many take turns")
    parser.add_argument("--prefix-length", type=int, default=128)
    parser.add_argument("--new", type=int, default=48, help="new tokens of every answer")
    parser.add_argument("--requests", type=int, default=4, help="answers for every client, from 32 clients on")
    parser.add_argument("--alone", type=int, default=6, help="answers that are made one at a time")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    options.device = str(device_of(options))
    options.bits = (4 if options.size == "6b" else 0) if options.bits is None else options.bits
    bench = Bench(options)
    results = bench.measure()
    print(table(HEADS, [[_cell(result.get(head)) for head in HEADS] for result in results]))
    equal = bench.equal_answers()
    print(f"answers of a full batch equal to generate's: {equal:.0%}")
    print(json_line("serving", vars(options), {"rows": results, "equal answers": equal}))
    return 0 if equal == 1 or options.size != "tiny" else 1


class Bench:
    """One model, its prefixes and prompts, and the ways to answer them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = tokenizer()
        self.model: Any = made_model(options.size, options.dtype, bits=options.bits, device=options.device)
        config = self.model.config
        self.encoders = []
        for seed in range(max(options.prefixes)):
            torch.manual_seed(seed)
            self.encoders.append(random_encoder(config, options.prefix_length).to(self.model.device))
        draw = random.Random(0)
        ends = [config.gmask_token_id, config.bos_token_id]
        self.prompts = [[draw.randrange(100, 1500) for _ in range(draw.randint(14, 62))] + ends for _ in range(512)]

    def measure(self) -> list[dict[str, Any]]:
        """Every way as often as asked for, alternately; medians."""
        options = self.options
        ways: list[dict[str, Any]] = [{"way": "generate, one at a time", "clients": 1, "prefixes": 1}]
        ways += [
            {"way": "engine", "clients": clients, "prefixes": count}
            for clients in options.clients
            for count in options.prefixes
            if count <= clients
        ]
        runs: list[list[dict[str, float]]] = [[] for _ in ways]
        for repeat in range(-1, options.repeats):  # the first round warms up
            for number, way in enumerate(ways):
                if way["way"] == "engine":
                    measured = self._engine(way["clients"], way["prefixes"], short=repeat < 0)
                else:
                    measured = self._generate()
                if repeat >= 0:
                    runs[number].append(measured)
        plain = statistics.median(run["tokens/s"] for run in runs[0])
        for way, repeats in zip(ways, runs, strict=True):
            way |= {key: statistics.median(run[key] for run in repeats) for key in repeats[0]}
            rates = [run["tokens/s"] for run in repeats]
            way["spread"] = (max(rates) - min(rates)) / way["tokens/s"]
            way["times as fast"] = way["tokens/s"] / plain
        return ways

    def _made(self, rows: int, prefixes: int) -> tuple[Engine, list[SharedPrefix]]:
        engine = Engine(self.model, self.tokenizer, max_rows=rows, max_waiting=4 * rows)
        engine.scheduler.end_ids = frozenset()  # every answer has the same length
        with torch.no_grad():
            shared = [engine.add_prefix(str(n), self.encoders[n](self.model.dtype)) for n in range(prefixes)]
        return engine, shared

    def _engine(self, clients: int, prefixes: int, short: bool = False) -> dict[str, float]:
        """Clients that ask again when they are answered; each sticks to its prefix."""
        options = self.options
        engine, shared = self._made(clients, prefixes)
        total = clients if short else max(options.alone, options.requests * clients if clients >= 32 else 3 * clients)
        done: list[Generation] = []
        sent, greedy = 0, SamplingParams(temperature=0, max_new_tokens=options.new)

        def ask(client: int) -> None:
            nonlocal sent
            request = Request(self.prompts[sent % 512], shared[client % prefixes], greedy)
            sent += 1
            engine.submit([request], lambda generation, _: ended(generation, client))

        def ended(generation: Generation, client: int) -> None:
            done.append(generation)
            if sent < total:
                ask(client)

        began = time.perf_counter()
        for client in range(clients):
            ask(client)
        while engine.step():
            pass
        seconds = time.perf_counter() - began
        waits = sorted(1000 * ((answer.first_token or 0.0) - answer.submitted) for answer in done)
        return {
            "tokens/s": sum(len(answer.ids) for answer in done) / seconds,
            "requests/s": len(done) / seconds,
            "first token p50 ms": waits[len(waits) // 2],
            "p99 ms": waits[min(len(waits) - 1, int(0.99 * len(waits)))],
        }

    @torch.no_grad()
    def _generate(self) -> dict[str, float]:
        began = time.perf_counter()
        for number in range(self.options.alone):
            self._alone(self.prompts[number], 0)
        seconds = time.perf_counter() - began
        return {"tokens/s": self.options.alone * self.options.new / seconds, "requests/s": self.options.alone / seconds}

    @torch.no_grad()
    def _alone(self, ids: list[int], prefix: int) -> list[int]:
        """What transformers' generate answers, as long as every other answer."""
        generated = self.model.generate(
            torch.tensor([ids], device=self.model.device), max_new_tokens=self.options.new, do_sample=False,
            eos_token_id=None, pad_token_id=self.tokenizer.pad_token_id,
            prefix_key_values=self.encoders[prefix](self.model.dtype),
        )
        return generated[0, len(ids) :].tolist()

    def equal_answers(self) -> float:
        """Share of 12 answers in a batch with many prefixes that are token for token those of generate."""
        count = max(self.options.prefixes)
        engine, shared = self._made(32, count)
        new = self.options.new
        greedy = SamplingParams(temperature=0, max_new_tokens=new)
        requests = [Request(ids, shared[number % count], greedy) for number, ids in enumerate(self.prompts[:32])]
        answers = {generation.index: generation.ids for generation in engine.run(requests)}
        chosen = range(0, 32, 3)
        return sum(answers[n] == self._alone(self.prompts[n], n % count) for n in chosen) / len(chosen)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
