"""Memory of a tuning run: whether activations are computed twice to need less, and, where it did not suffice all the same,
what the run was expected to need and what each way to need less would save."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from ptuning.checkpoint.placement import free_bytes
from ptuning.checkpoint.run_checkpoints import checkpoints
from ptuning.data.example_store import PackedExamples
from ptuning.kernels.dispatch import uses_native
from ptuning.memory.checkpointing_choice import choose_checkpointing
from ptuning.memory.estimates import Storage, tuning_memory
from ptuning.methods.method import TuningCost
from ptuning.methods.registry import METHODS
from ptuning.model.network import ChatGLMNetwork
from ptuning.model.sizes import ModelSizes, size_text
from ptuning.settings.arguments import DataArguments
from ptuning.settings.training_arguments import Arguments

logger = logging.getLogger(__name__)

_CHECKPOINTING_FLAGS = ("gradient_checkpointing", "activation_checkpointing")


def settle_checkpointing(
    model: ChatGLMNetwork, arguments: Arguments, examples: PackedExamples
) -> None:
    """Turn gradient checkpointing on where memory would not suffice without it, unless the user set it; logs that.

    Args:
        model: loaded, with what will be trained.
        arguments: of the run; its ``training`` is changed.
        examples: to be trained on; their longest decides, not the limits that rows may not reach.
    """
    given, training = arguments.given, arguments.training
    was_set = any(given.get(name) is not None for name in _CHECKPOINTING_FLAGS)
    if was_set or training.gradient_checkpointing:
        return
    source, target = _longest(examples, arguments.data)
    sizes, storage, tuned = _shape(model, arguments)
    chosen = choose_checkpointing(
        sizes, storage, tuned, batch=training.per_device_train_batch_size, source=source, target=target,
        accumulation=training.gradient_accumulation_steps, free=free_bytes(model.device),
    )
    if chosen.on:
        for name in _CHECKPOINTING_FLAGS:  # the old name, and the one that newer transformers read
            setattr(training, name, True)
        logger.info("%s", chosen.message)


def _longest(examples: PackedExamples, data: DataArguments) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest reply, as batches will have them."""
    limits = data.max_source_length, data.max_target_length
    if data.pad_to_max_length or not data.ignore_pad_token_for_loss:
        return limits
    full = (int(examples.arrays[name].max()) for name in ("full_source", "full_target"))
    source, target = (max(1, min(length, limit)) for length, limit in zip(full, limits, strict=True))
    return source, target


def out_of_memory_message(model: ChatGLMNetwork, arguments: Arguments, error: BaseException) -> str:
    """Say what the run was expected to need, what to change and how much each change saves, and what is kept."""
    training = arguments.training
    total = _needed(model, arguments, {})
    ways = []
    for flags, changes in _changes(model, arguments):
        saving = total - _needed(model, arguments, changes)
        if saving > 0.01 * total:
            ways.append((saving, f"{flags} (about {size_text(saving)} less)"))
    lower = "; ".join(text for _, text in sorted(ways, key=lambda way: -way[0])) or "a smaller model"
    saved = checkpoints(str(training.output_dir))
    kept = f"{saved[-1]} is whole (--resume_from_checkpoint auto resumes from it)" if saved else "Nothing was saved yet"
    first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return (
        f"out of memory while tuning ({first}). This run was expected to need about {size_text(total)} beside Python "
        f"itself. To need less: {lower}. {kept}"
    )


def _changes(model: ChatGLMNetwork, arguments: Arguments) -> list[tuple[str, dict[str, Any]]]:
    training, data = arguments.training, arguments.data
    batch, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    changes: list[tuple[str, dict[str, Any]]] = []
    if batch > 1:
        flags = f"--per_device_train_batch_size {batch // 2} --gradient_accumulation_steps {accumulation * 2}"
        changes.append((flags, {"batch": batch // 2, "accumulation": accumulation * 2}))
    if not training.gradient_checkpointing:
        changes.append(("--gradient_checkpointing", {"checkpointing": True}))
    if data.max_source_length > 64:
        changes.append((f"--max_source_length {data.max_source_length // 2}", {"source": data.max_source_length // 2}))
    if not model.config.quantization_bit:
        changes.append(("--quantization_bit 4", {"bits": 4}))
    return changes


def _needed(model: ChatGLMNetwork, arguments: Arguments, changes: dict[str, Any]) -> int:
    """Bytes by the formulae of ``ptuning info``."""
    training, data = arguments.training, arguments.data
    sizes, storage, tuned = _shape(model, arguments)
    return tuning_memory(
        sizes,
        replace(storage, bits=changes.get("bits", storage.bits)),
        tuned,
        batch=changes.get("batch", training.per_device_train_batch_size),
        source=changes.get("source", data.max_source_length),
        target=data.max_target_length,
        accumulation=changes.get("accumulation", training.gradient_accumulation_steps),
        checkpointing=bool(changes.get("checkpointing", training.gradient_checkpointing)),
    ).total


def _shape(model: ChatGLMNetwork, arguments: Arguments) -> tuple[ModelSizes, Storage, TuningCost]:
    """What the formulae ask of a loaded model with what will be trained."""
    config = model.config
    storage = Storage(
        config.quantization_bit,
        bool(config.quantization_embeddings),
        int(model.dtype.itemsize),
        device="cpu" if model.device.type == "cpu" else "accelerator",
        table_bytes=0 if config.quantization_embeddings else int(model.lm_head.weight.element_size()),
        native=model.device.type == "cpu" and uses_native(model.dtype),
    )
    return ModelSizes.from_config(config.to_dict()), storage, METHODS[arguments.method].cost(model)
