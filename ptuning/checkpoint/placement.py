"""Where a model goes and in which dtype, from what a user may write."""

from __future__ import annotations

import os
from typing import Any

import torch

from ptuning.core.choices import DtypeName, values_of
from ptuning.core.errors import UserError
from ptuning.kernels.dispatch import free_memory


def parse_dtype(*given: Any) -> torch.dtype | None:
    """A torch dtype from the first value that is not None: a dtype, its name, "half"/"fp16"/"bf16"/"fp32", or "auto".

    Raises:
        UserError: anything else.
    """
    value = next((one for one in given if one is not None), None)
    if value is None or value == "auto":
        return None
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}
    name = str(value).removeprefix("torch.")
    name = names.get(name, name)
    if name not in values_of(DtypeName):
        raise UserError(f"dtype {value!r} was given; allowed are float32, float16, bfloat16 and auto")
    return getattr(torch, name)


def one_device(device: Any, device_map: Any) -> torch.device:
    """The one device that ``device`` or transformers' ``device_map`` names; the CPU where neither is given."""
    if isinstance(device_map, dict):
        places = set(device_map.values())
        if len(places) != 1:
            raise UserError(f"device_map names {len(places)} devices; the model lives on one: give one device")
        device_map = places.pop()
    if device is None and device_map not in (None, "auto", "balanced", "sequential"):
        device = device_map
    if device is None and device_map is not None:
        device = pick_device(None)
    return pick_device("cpu" if device is None else device)


def pick_device(device: str | torch.device | int | None) -> torch.device:
    """The device asked for; None or "auto": CUDA, then MPS, then the CPU.

    Raises:
        UserError: a device that torch does not know or that is not there.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {device!r} was given; allowed are auto, cpu, cuda, cuda:N and mps") from error
    if chosen.type == "meta":
        raise UserError("device 'meta' was given: a model there has no weights; allowed are auto, cpu, cuda, cuda:N and mps")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was given, but torch {torch.__version__} sees no CUDA device; use --device auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r} was given, but torch sees {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {device!r} was given, but torch sees no MPS device; use --device auto")
    return chosen


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; None where the device does not tell.

    On CUDA, what torch holds and does not use counts as free. On a CPU, processes of one launcher share what is free.
    """
    if device.type == "cpu":
        return free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return None
