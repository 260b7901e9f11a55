"""Where a model goes and in which dtype, from what a user may write."""

from __future__ import annotations

import os
from typing import Any

import torch

from ptuning.core.choices import DtypeName, values_of
from ptuning.core.errors import UserError
from ptuning.kernels.allocator import return_freed_memory
from ptuning.kernels.dispatch import best_cpu_dtype, free_memory
from ptuning.kernels.dispatch import settings as kernel_settings
from ptuning.model.config import ChatGLMConfig
from ptuning.model.sizes import ModelSizes, PrefixSizes, prefix_numbers, size_text


def parse_dtype(*values: Any) -> torch.dtype | None:
    """A torch dtype from the first value that is not None: a dtype, its name, "half"/"fp16"/"bf16"/"fp32", or "auto".

    Raises:
        UserError: anything else.
    """
    value = next((candidate for candidate in values if candidate is not None), None)
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


def chosen_dtype(
    config: ChatGLMConfig, bits: int | None, device: torch.device, requested: str | torch.dtype | None
) -> torch.dtype | None:
    """The dtype to load in; None is the checkpoint's own.

    A lean quantised model on a CPU also has freed memory given back from here on.

    Args:
        config: of the checkpoint.
        bits: asked for; what the checkpoint has comes before.
        device: where the model goes.
        requested: as a user wrote it; None or "auto": see :func:`cpu_dtype`.
    """
    dtype, bits = parse_dtype(requested), config.quantization_bit or bits
    if device.type != "cpu":
        return dtype
    if bits and kernel_settings().memory == "lean":
        return_freed_memory()
    return cpu_dtype(config, bits) if dtype is None else dtype


def cpu_dtype(config: ChatGLMConfig, quantization_bit: int | None = None) -> torch.dtype | None:
    """The dtype that a CPU should use when nobody chose one; None is the checkpoint's own.

    In place of float16 a float model gets float32, and a quantised one what its kernels are best with on this CPU, see
    :func:`ptuning.kernels.dispatch.best_cpu_dtype`.
    """
    if config.dtype not in (torch.float16, "float16", None):
        return None
    return best_cpu_dtype() if quantization_bit else torch.float32


def check_new_prefix(
    config: ChatGLMConfig, pre_seq_len: int, prefix_projection: bool | None, device: torch.device
) -> None:
    """Refuse a new prefix that can have no such length, or that will not fit where it is trained.

    Raises:
        UserError: with what is needed and what is free.
    """
    if isinstance(pre_seq_len, bool) or not isinstance(pre_seq_len, int) or pre_seq_len < 1:
        raise UserError(f"pre_seq_len {pre_seq_len} was given; allowed is 1 or more (leave it out for no prefix)")
    free = free_bytes(device)
    sizes = ModelSizes.from_config(config.to_dict())
    _, trained = prefix_numbers(sizes, PrefixSizes(pre_seq_len, bool(prefix_projection)))
    needed = _BYTES_OF_TRAINED * trained
    if free is not None and needed > max(free, _ALWAYS_TRIED):
        raise UserError(
            f"--pre_seq_len {pre_seq_len}: the prefix alone would take {size_text(needed)} while it is trained, and "
            f"{size_text(free)} are free; usual are 8 to 256"
        )


_BYTES_OF_TRAINED = 16  # a number, its gradient and the optimiser's two moments, in float32
_ALWAYS_TRIED = 2**30  # bytes; what is free is a guess, and smaller prefixes are rarely what makes the difference
