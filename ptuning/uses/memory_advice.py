"""Memory that does not suffice: what a run was expected to need, and what each way to need less would save."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ptuning.blocks.kernels.choose import uses_compiled
from ptuning.loops.checkpoints import checkpoints
from ptuning.loops.training_arguments import Arguments
from ptuning.plain.memory import GIB, ModelSizes, PrefixSizes, Storage, tuning_memory
from ptuning.tuned.model import ChatGLMForConditionalGeneration


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory_message(model: ChatGLMForConditionalGeneration, arguments: Arguments, error: BaseException) -> str:
    """Say what the run was expected to need, what to change and how much each change saves, and what is kept."""
    training = arguments.training
    wanted = _needed(model, arguments, {})
    ways = []
    for flags, changes in _changes(model, arguments):
        less = wanted - _needed(model, arguments, changes)
        if less > 0.01 * wanted:
            ways.append((less, f"{flags} (about {_size(less)} less)"))
    lower = "; ".join(text for _, text in sorted(ways, key=lambda way: -way[0])) or "a smaller model"
    saved = checkpoints(str(training.output_dir))
    kept = f"{saved[-1]} is whole (--resume_from_checkpoint auto goes on from it)" if saved else "Nothing was saved yet"
    first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return (
        f"out of memory while tuning ({first}). This run was expected to need about {_size(wanted)} beside Python itself. "
        f"To need less: {lower}. {kept}"
    )


def _changes(model: ChatGLMForConditionalGeneration, arguments: Arguments) -> list[tuple[str, dict[str, Any]]]:
    training, data = arguments.training, arguments.data
    batch, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    found: list[tuple[str, dict[str, Any]]] = []
    if batch > 1:
        flags = f"--per_device_train_batch_size {batch // 2} --gradient_accumulation_steps {accumulation * 2}"
        found.append((flags, {"batch": batch // 2, "accumulation": accumulation * 2}))
    if not training.gradient_checkpointing:
        found.append(("--gradient_checkpointing", {"checkpointing": True}))
    if data.max_source_length > 64:
        found.append((f"--max_source_length {data.max_source_length // 2}", {"source": data.max_source_length // 2}))
    if not model.config.quantization_bit:
        found.append(("--quantization_bit 4", {"bits": 4}))
    return found


def _needed(model: ChatGLMForConditionalGeneration, arguments: Arguments, changes: dict[str, Any]) -> int:
    """Bytes by the formulae of ``ptuning info``."""
    training, data, config = arguments.training, arguments.data, model.config
    storage = Storage(
        config.quantization_bit,
        bool(config.quantization_embeddings),
        int(model.dtype.itemsize),
        device="cpu" if model.device.type == "cpu" else "accelerator",
        table_bytes=0 if config.quantization_embeddings else int(model.lm_head.weight.element_size()),
        compiled=model.device.type == "cpu" and bool(config.quantization_bit) and uses_compiled(model.dtype),
    )
    encoder: Any = model.prefix_encoder
    return tuning_memory(
        ModelSizes.from_config(config.to_dict()),
        replace(storage, bits=changes.get("bits", storage.bits)),
        PrefixSizes(encoder.config.pre_seq_len, encoder.config.projection),
        batch=changes.get("batch", training.per_device_train_batch_size),
        source=changes.get("source", data.max_source_length),
        target=data.max_target_length,
        accumulation=changes.get("accumulation", training.gradient_accumulation_steps),
        checkpointing=bool(changes.get("checkpointing", training.gradient_checkpointing)),
    ).total


def _size(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"
