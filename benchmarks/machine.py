"""What the benchmarks share: medians, the measured memory ceiling, tables, and the JSON line."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_LONG = 0.6  # seconds of a call that is measured once, after one that warms up


def median_seconds(run: Callable[[], Any], device: torch.device, *, repeats: int = 5, at_least: float = 0.05) -> float:
    """Median wall time of one call, seconds; short calls are repeated inside one measurement, long ones are not repeated."""
    run()
    once = _timed(run, device, 1)
    if once > _LONG:
        return once
    calls = max(1, round(at_least / max(once, 1e-6)))
    return statistics.median(_timed(run, device, calls) for _ in range(repeats))


def _timed(run: Callable[[], Any], device: torch.device, calls: int) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls


def read_gigabytes_per_second(device: torch.device, size: int = 1 << 28) -> float:
    """Best rate at which this device's memory was read, GB/s: a dot product over arrays that fit no cache."""
    first = torch.ones(size // 4, device=device)
    second = torch.ones(size // 4, device=device)
    best = min(median_seconds(lambda: torch.dot(first, second), device, repeats=3) for _ in range(3))
    return 2 * size / best / 1e9


def products_per_second(device: torch.device, dtype: torch.dtype, size: int = 1536) -> float:
    """Rate of square matrix products of this device, floating point operations a second: the ceiling of dense work."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(median_seconds(lambda: left @ right, device, repeats=3) for _ in range(2))


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any, digits: int = 3) -> str:
    """A number of a table with so many digits; nothing for None."""
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def json_line(benchmark: str, settings: dict[str, Any], results: Any) -> str:
    """One line that says what ran where and what came out."""
    return json.dumps(
        {
            "benchmark": benchmark, "command": shlex.join(sys.argv[1:]), "machine": machine(), "commit": commit(),
            "settings": settings, "results": results,
        }
    )


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def commit() -> str | None:
    """The commit of this checkout, with ``+`` where files differ from it."""
    try:
        call = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **call).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **call).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if dirty else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
