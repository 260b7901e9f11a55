"""Products with packed weights: kernel x rows x milliseconds, against the read ceiling of the memory.

The four linears of one block are multiplied in turn, over enough blocks that no weight stays in the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import json_line, median_seconds, read_gigabytes_per_second, table
from ptuning.kernels import cpu, dispatch
from ptuning.kernels.packed import PackedWeight, tile_int4

HIDDEN = {"tiny": 256, "mid": 1024, "6b": 4096}
_PAST_THE_CACHE = 100_000_000  # bytes of packed weights that are walked through
Linear = tuple[PackedWeight, Tensor]


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = _parse(arguments)
    device = torch.device(options.device)
    ceiling = read_gigabytes_per_second(device)
    heads = ("kernel", "bits", "dtype", "rows", "forward ms", "GB/s", "of ceiling", "input gradient ms")
    results: list[dict[str, Any]] = []
    for bits in options.bits:
        blocks = _blocks(HIDDEN[options.size], bits, device)
        for dtype in options.dtypes:
            for name, kernel, form in _contenders(device, bits, dtype):
                held = [[_formed(weight, form, dtype) for weight in block] for block in blocks]
                for rows in options.rows:
                    results.append(_measure(name, kernel, held, bits, dtype, rows, ceiling))
                    print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"One block of hidden size {HIDDEN[options.size]} on {device.type}; memory read at {ceiling:.1f} GB/s.\n")
    print(table(heads, [[_cell(result[head]) for head in heads] for result in results]))
    settings = {**vars(options), "ceiling GB/s": round(ceiling, 2)}
    print(json_line("quantization", settings, results))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.sh quantization", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(HIDDEN), default="mid", help="shapes of the model (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128], help="rows of activations")
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 8), default=[4, 8])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"), default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.dtypes is None:
        options.dtypes = ["float32", "bfloat16"] if options.device == "cpu" else ["bfloat16", "float16"]
    return options


def _blocks(hidden: int, bits: int, device: torch.device) -> list[list[PackedWeight]]:
    shapes = ((3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden))
    size = sum(rows * columns for rows, columns in shapes) * bits // 8
    generator = torch.Generator().manual_seed(0)
    blocks = []
    for _ in range(max(1, min(64, _PAST_THE_CACHE // size))):
        block = []
        for rows, columns in shapes:
            data = torch.randint(-128, 128, (rows, columns * bits // 8), dtype=torch.int8, generator=generator)
            scale = torch.full((rows,), 0.02 / 2 ** (bits - 1), dtype=torch.float16)
            block.append(PackedWeight(data.to(device), scale.to(device), bits, rows, columns))
        blocks.append(block)
    return blocks


def _contenders(device: torch.device, bits: int, dtype: str) -> list[tuple[str, dispatch.Kernel | None, str]]:
    """(name, kernel or None for a float weight, form of the weight)."""
    contenders: list[tuple[str, dispatch.Kernel | None, str]] = [("float weights", None, "float")]
    if device.type == "cpu":
        contenders += [("reference", dispatch.REFERENCE, "published"), ("cpu, published form", dispatch.CPU, "published")]
        if bits == 4 and dtype == "bfloat16" and cpu.tile_lanes():
            contenders.append(("cpu, lean (tiled form)", dispatch.CPU, "tiled"))
        contenders.append(("cpu, fast (unpacked copy)", dispatch.CPU, "resident"))
        native = dispatch.start("native")
        if native is not None:
            contenders.append(("native", native, "published"))
            lower = dispatch.PRECISIONS[1:] if bits == 4 else ()  # INT8 has one precision
            contenders += [(f"native, {precision}", _at(native, precision), "published") for precision in lower]
        return contenders
    started = [(name, dispatch.start(name)) for name in ("reference", "triton", "cpm")]
    return contenders + [(name, kernel, "published") for name, kernel in started if kernel is not None]


def _at(kernel: dispatch.Kernel, precision: str) -> dispatch.Kernel:
    """The same kernel under another precision."""

    def under(way: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*arguments: Any) -> torch.Tensor:
            dispatch.configure(precision=precision)
            try:
                return way(*arguments)
            finally:
                dispatch.configure()

        return run

    return replace(kernel, product=under(kernel.product), input_gradient=under(kernel.input_gradient))


def _formed(weight: PackedWeight, form: str, dtype: str) -> PackedWeight:
    if form == "float":
        shape = (weight.rows, weight.columns)
        return weight._replace(resident=torch.randn(shape, device=weight.data.device).to(getattr(torch, dtype)))
    if form == "published":
        return weight
    lanes = cpu.tile_lanes()
    if weight.bits == 4 and dtype == "bfloat16" and lanes:
        weight = weight._replace(data=tile_int4(weight.data, lanes), lanes=lanes)
    wide = cpu.widened(getattr(torch, dtype))
    return weight._replace(resident=cpu.integers(weight, wide)) if form == "resident" else weight


def _measure(
    name: str,
    kernel: dispatch.Kernel | None,
    blocks: list[list[PackedWeight]],
    bits: int,
    dtype: str,
    rows: int,
    ceiling: float,
) -> dict[str, Any]:
    device, kind = blocks[0][0].data.device, getattr(torch, dtype)
    inputs = {w.columns: torch.randn(rows, w.columns, device=device, dtype=kind) for w in blocks[0]}
    gradients = {w.rows: torch.randn(rows, w.rows, device=device, dtype=kind) for w in blocks[0]}

    def forward() -> None:
        for weight in (weight for block in blocks for weight in block):
            if kernel is None and weight.resident is not None:
                torch.nn.functional.linear(inputs[weight.columns], weight.resident)
            elif kernel is not None:
                kernel.product(inputs[weight.columns], weight, None)

    def backward() -> None:
        for weight in (weight for block in blocks for weight in block):
            if kernel is None and weight.resident is not None:
                gradients[weight.rows] @ weight.resident
            elif kernel is not None:
                kernel.input_gradient(gradients[weight.rows], weight)

    with torch.no_grad():
        seconds = median_seconds(forward, device, repeats=3) / len(blocks)
        seconds_back = median_seconds(backward, device, repeats=3) / len(blocks) if rows >= 32 else None
    weights = sum(weight.rows * weight.columns for weight in blocks[0])
    rate = weights * (kind.itemsize if kernel is None else bits / 8) / seconds / 1e9
    return {
        "kernel": name, "bits": bits, "dtype": dtype, "rows": rows, "forward ms": seconds * 1e3, "GB/s": rate,
        "of ceiling": rate / ceiling, "input gradient ms": None if seconds_back is None else seconds_back * 1e3,
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
