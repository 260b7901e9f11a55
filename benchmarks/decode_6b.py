"""A random 6.2B INT4 model on the CPU: peak memory of loading, prompt and decode rates, beside the ceiling and chatglm-cpp.

The checkpoint is written to a temporary folder (about 4 GB, deleted afterwards) and loaded in a process of its own, whose
peak resident memory is read at the end. ``--chatglm_cpp PYTHON`` names a Python that has the package chatglm-cpp; a model of
the same shape in its q4_0 format is then measured before and after ours, and the better of its rates count: it also rounds
activations to 8 bits, as ``medium`` does, with a scale for every 32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import chatglm_cpp
from benchmarks.machine import json_line, read_gigabytes_per_second, table
from benchmarks.random_checkpoint import SIZES, write_random_checkpoint
from ptuning.kernels import dispatch
from ptuning.kernels.dispatch import PRECISIONS


def main(arguments: list[str]) -> int:
    """Measure and print; with ``--inside FOLDER`` (its own subprocess) load and measure one model."""
    parser = argparse.ArgumentParser(prog="benchmark.sh decode_6b", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="6b")
    parser.add_argument("--embeddings", choices=("float", "int4", "both"), default="both", help="embedding and head")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to decode")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--memory", default="lean", help="lean or fast[:GB], see ptuning.kernels.dispatch")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["highest"], help="of INT4 products")
    parser.add_argument("--dtype", default=None, help="of the activations (default: what load_model chooses)")
    parser.add_argument("--chatglm_cpp", metavar="PYTHON", help="a Python that has the package chatglm-cpp")
    parser.add_argument("--folder", help="where the temporary checkpoint goes (default: the system's place)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        print(json.dumps(_measure_inside(options)))
        return 0
    ceiling = read_gigabytes_per_second(torch.device("cpu"))
    results: list[dict[str, Any]] = []
    peer = [_peer(options)] if options.chatglm_cpp else []
    for embeddings in ("float", "int4") if options.embeddings == "both" else (options.embeddings,):
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            folder = Path(temporary) / "model"
            size = write_random_checkpoint(folder, options.size, quantised_embeddings=embeddings == "int4")
            measured = _in_subprocess(options, folder)
        read_per_token, rates = measured.pop("bytes read per token"), measured.pop("rates")
        results += [
            {
                "model": f"ptuning, {options.memory}, {embeddings} embeddings, {precision}", "file GB": size / 1e9,
                **measured, "peak / file": measured["peak GB"] * 1e9 / size, **rates[precision],
                "ceiling tokens/s": ceiling * 1e9 / read_per_token,
            }
            for precision in options.precision
        ]
    if options.chatglm_cpp:
        peer.append(_peer(options))
        results.append({name: _better(name, *(run[name] for run in peer)) for name in peer[0]})
    heads = list(dict.fromkeys(key for result in results for key in result))
    print(f"Random model of size {options.size}; memory read at {ceiling:.1f} GB/s.\n")
    print(table(heads, [[_cell(result.get(head)) for head in heads] for result in results]))
    print(json_line("decode_6b", {**vars(options), "ceiling GB/s": round(ceiling, 2)}, results))
    return 0


def _peer(options: argparse.Namespace) -> dict[str, Any]:
    return chatglm_cpp.measure(options.chatglm_cpp, SIZES[options.size], options.prompt, options.new)


def _better(name: str, first: Any, second: Any) -> Any:
    return max(first, second) if "tokens/s" in name else second


def _in_subprocess(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "benchmarks", "decode_6b", "--inside", str(folder), "--prompt", str(options.prompt),
        "--new", str(options.new), "--batches", *map(str, options.batches), "--precision", *options.precision,
    ]
    if options.dtype:
        command += ["--dtype", options.dtype]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, env={**os.environ, "PTUNING_MEMORY": options.memory},
        stdout=subprocess.PIPE, text=True, check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure_inside(options: argparse.Namespace) -> dict[str, Any]:
    from ptuning.checkpoint.load import load_model
    from ptuning.model.answering import AnsweringModel

    start = time.perf_counter()
    model: Any = load_model(AnsweringModel, options.inside, device="cpu", dtype=options.dtype)
    results: dict[str, Any] = {"load s": time.perf_counter() - start, "peak GB after loading": _peak()}
    # Read once a token: everything but the embedding, which gives one row.
    read = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}
    read.pop(model.transformer.word_embeddings.weight.data_ptr(), None)
    read[model.lm_head.weight.data_ptr()] = model.lm_head.weight.nbytes
    results["bytes read per token"] = sum(read.values())
    rates: dict[str, dict[str, float]] = {}
    for precision in options.precision:
        dispatch.configure(precision=precision)
        rates[precision] = {}
        for batch in options.batches:
            rates[precision] |= _rates(model, batch, options)
    return results | {"rates": rates, "peak GB": _peak()}


def _rates(model: Any, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """Tokens of prompts and of answers a second, from the time of the engine's steps: medians."""
    from ptuning.engine.engine import Engine
    from ptuning.engine.request import Request
    from ptuning.engine.sampling_params import SamplingParams

    config = model.config
    engine = Engine(model, SimpleNamespace(eos_token_id=-1), max_rows=batch, max_length=options.prompt + options.new + 2)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(10, 100000, (batch, options.prompt), generator=generator)
    prompts[:, -2], prompts[:, -1] = config.gmask_token_id, config.bos_token_id
    first: list[float] = []
    steps: list[float] = []
    greedy = SamplingParams(temperature=0, max_new_tokens=options.new + 2)
    for repeat in range(3):  # in the first one, weights take the form for decoding
        requests = [Request(ids if repeat else ids[-8:], sampling=greedy) for ids in prompts.tolist()]
        generations = engine.submit(requests, lambda generation, piece: None)
        times = []
        while not engine.idle:
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        if any(len(generation.ids) != options.new + 2 for generation in generations):
            raise RuntimeError("an answer has another number of tokens than was asked for")
        if repeat:
            first.append(times[0])
            steps += times[1 : options.new + 1]
    # The first step reads the prompts and makes one token more than they are.
    step = statistics.median(steps)
    return {
        f"prompt tokens/s, batch {batch}": batch * options.prompt / (statistics.median(first) - step),
        f"decode tokens/s, batch {batch}": batch / step,
    }


def _peak() -> float:
    """Peak resident memory of this process, GB (mapped pages of files included)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
