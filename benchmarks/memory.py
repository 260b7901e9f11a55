"""Peak memory, measured, beside what ``ptuning info`` predicts: a random 6.2B model on a GPU, a scaled one on a CPU.

Every measurement is a process of its own. On a GPU: what torch has allocated at most while a prefix of 128 tokens is tuned
on rows of 64 + 64 tokens. On a CPU: resident memory over that of the process before the model came.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.machine import json_line, table
from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
from ptuning.engine.generation import PRESETS, generate_answers
from ptuning.engine.load import load_model
from ptuning.kernels import dispatch
from ptuning.memory.estimates import MemoryEstimate, Storage, answering_memory, tuning_memory
from ptuning.methods.prefix import prefix_cost
from ptuning.model.config import ChatGLMConfig
from ptuning.model.sizes import GIB, ModelSizes, PrefixSizes

TOLERANCE = 0.15
IDS: dict[str, Any] = {"bos_token_id": 89, "eos_token_id": 90, "mask_token_id": 85, "gmask_token_id": 86, "pad_token_id": 3}
SCALED: dict[str, Any] = {
    "vocab_size": 16000, "hidden_size": 512, "num_layers": 8, "num_attention_heads": 8, "inner_hidden_size": 2048,
}
WARM_UP: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "inner_hidden_size": 128,
}
ON_CPU: tuple[dict[str, Any], ...] = (
    {"use": "tuning", "bits": 0, "batch": 4, "source": 64, "target": 64, "prefix": 32},
    {"use": "tuning", "bits": 4, "batch": 4, "source": 64, "target": 64, "prefix": 32},
    {"use": "tuning", "bits": 4, "batch": 4, "source": 64, "target": 64, "prefix": 32, "checkpointing": True},
    {"use": "tuning", "bits": 4, "batch": 2, "source": 64, "target": 64, "prefix": 128, "accumulation": 4},
    {"use": "answering", "bits": 0, "batch": 4, "prompt": 64, "length": 128, "prefix": 32},
    {"use": "answering", "bits": 4, "batch": 8, "prompt": 128, "length": 160},
    {"use": "tuning", "bits": 4, "batch": 2, "source": 64, "target": 64, "prefix": 32, "dtype": "bfloat16"},
    {"use": "answering", "bits": 8, "batch": 4, "prompt": 96, "length": 128, "dtype": "bfloat16"},
)
_TUNED = {"use": "tuning", "batch": 1, "source": 64, "target": 64, "prefix": 128, "accumulation": 16}
ON_GPU: tuple[dict[str, Any], ...] = (
    {**_TUNED, "bits": 4, "embeddings": True, "limit": 4.2},
    {**_TUNED, "bits": 4, "limit": 5.6},
    {**_TUNED, "bits": 8, "limit": 8.2},
    {**_TUNED, "bits": 0, "limit": 13.4},
    {**_TUNED, "bits": 4, "embeddings": True, "batch": 16, "accumulation": 1, "limit": 7.0},
    {**_TUNED, "bits": 4, "embeddings": True, "batch": 16, "accumulation": 1, "checkpointing": True, "limit": 7.0},
)
"""``limit``: GiB that the run may take at most."""


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where a prediction is off by more than 15 % or a limit is passed."""
    parser = argparse.ArgumentParser(prog="benchmarks memory", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one measurement, in this process
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return 0
    on_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    results = [in_own_process({**case, "device": "cuda" if on_gpu else "cpu"}) for case in (ON_GPU if on_gpu else ON_CPU)]
    heads = ("use", "weights", "rows", "measured GiB", "predicted GiB", "off by", "limit GiB")
    print(table(heads, [_row(result) for result in results]))
    print(json_line("memory", {"model": "6.2B" if on_gpu else SCALED, "tolerance": TOLERANCE}, results))
    bad = [r for r in results if abs(r["off_by"]) > TOLERANCE or r["measured"] > r.get("limit", 1e9) * GIB]
    return 1 if bad else 0


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    weights = f"INT{result['bits']}{' QE' if result.get('embeddings') else ''}" if result["bits"] else "float"
    rows = f"{result['batch']} x {result.get('accumulation', 1)}{' ckpt' if result.get('checkpointing') else ''}"
    measured, predicted = (f"{result[name] / GIB:.3f}" for name in ("measured", "predicted"))
    return result["use"], weights, rows, measured, predicted, f"{result['off_by']:+.1%}", str(result.get("limit", ""))


def in_own_process(case: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Measure one case in a new process; its numbers and the prediction."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(case)]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | (environment or {}),
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    result = {**case, **json.loads(run.stdout.splitlines()[-1])}
    estimate = predict(case)
    return result | {
        "predicted": estimate.total,
        "off_by": round(estimate.total / result["measured"] - 1, 4),
        "parts": estimate.parts,
    }


def predict(case: dict[str, Any]) -> MemoryEstimate:
    """What the formulae say."""
    on_gpu = case["device"] == "cuda"
    sizes = ModelSizes.from_config({} if on_gpu else SCALED)
    dtype = torch.float16 if on_gpu else getattr(torch, case.get("dtype", "float32"))
    storage = Storage(
        case["bits"], case.get("embeddings", False), dtype.itemsize, device="accelerator" if on_gpu else "cpu",
        table_bytes=2 if case["bits"] else 0,  # the file is float16
        native=not on_gpu and dispatch.uses_native(dtype),
    )
    prefix = prefix_cost(sizes, PrefixSizes(case.get("prefix", 0)))
    if case["use"] == "answering":
        return answering_memory(
            sizes, storage, prefix, batch=case["batch"], length=case["length"], prompt=case["prompt"]
        )
    return tuning_memory(
        sizes, storage, prefix, batch=case["batch"], source=case["source"], target=case["target"],
        accumulation=case.get("accumulation", 1), checkpointing=case.get("checkpointing", False),
    )


def measure(case: dict[str, Any]) -> dict[str, int]:
    """Peak bytes of one case, in this process."""
    if case["device"] == "cuda":
        model = random_model(ChatGLMConfig(), case, torch.device("cuda"), torch.float16)
        torch.cuda.reset_peak_memory_stats()
        use(model, case)
        return {"measured": torch.cuda.max_memory_allocated()}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        for name, sizes in (("small", WARM_UP), ("large", SCALED)):
            model = random_model(ChatGLMConfig(**sizes, **IDS), {"bits": 0}, torch.device("cpu"), torch.float16)
            model.save_pretrained(Path(place) / name)
            del model
        # The small one does everything first: libraries and their buffers are in memory then.
        loaded = _load(Path(place) / "small", case)
        use(loaded, {**case, "batch": 1, "source": 8, "target": 8, "prompt": 8, "length": 16})
        del loaded
        gc.collect()
        _return_free_memory()  # what was freed and is still held would be used again, and not be counted
        before = resident()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        large = _load(Path(place) / "large", case)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        use(large, case)
        return {"measured": resident("VmHWM") - before}


def _return_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _load(folder: Path, case: dict[str, Any]) -> ChatGLMForConditionalGeneration:
    model = load_model(
        folder, device="cpu", dtype=case.get("dtype", "float32"), quantization_bit=case["bits"],
        pre_seq_len=case.get("prefix") or None,
    )
    if model.prefix_encoder is not None:
        model.prefix_encoder.fresh = False
    return model


def random_model(
    config: ChatGLMConfig, case: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> ChatGLMForConditionalGeneration:
    """A model of random weights, made where it is to be: floats of a quantised weight never exist."""
    config.quantization_bit, config.quantization_embeddings = case["bits"], bool(case.get("embeddings"))
    with torch.device("meta"):
        model: Any = ChatGLMForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dtype == torch.int8:
            parameter.random_(-128, 128)
        elif name.endswith("weight_scale"):
            parameter.fill_(0.02 / 4.61)
        elif "layernorm.weight" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02)
    if case.get("prefix"):
        from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

        model.attach_prefix(PrefixEncoder(prefix_config_of(config, case["prefix"], False)))
    return model


def use(model: ChatGLMForConditionalGeneration, case: dict[str, Any]) -> None:
    """Tune for three optimiser steps, or answer once."""
    if case["use"] == "answering":
        prompts = _ids(model, case["batch"], case["prompt"] - 2, 0).tolist()
        limits = [case["length"] - case["prompt"]] * len(prompts)
        words, sampled = SimpleNamespace(eos_token_id=-1), PRESETS["published"]
        list(generate_answers(model, words, prompts, limits, batch_size=len(prompts), preset=sampled))
        return
    model.train()
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    encoder: Any = model.prefix_encoder
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, fused=True)
    ids = _ids(model, case["batch"], case["source"] - 1, case["target"] - 1)
    labels = ids.clone()
    labels[:, : case["source"]] = -100
    accumulation = case.get("accumulation", 1)
    for _ in range(3):
        for _ in range(accumulation):
            (model(ids, labels=labels).loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()


def _ids(model: ChatGLMForConditionalGeneration, batch: int, before: int, after: int) -> torch.Tensor:
    config = model.config
    row = [*[120] * before, config.gmask_token_id, config.bos_token_id, *[120] * after]
    return torch.tensor([row] * batch, device=model.device)


def resident(field: str = "VmRSS") -> int:
    """Resident memory in bytes, now or (VmHWM) at its highest."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
