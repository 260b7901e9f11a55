"""``ptuning info``: how much memory a model will need, without loading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ptuning.core.choices import DEFAULT_METHOD
from ptuning.core.errors import UserError
from ptuning.edges.output import print_json, print_line
from ptuning.edges.table import table
from ptuning.memory.estimates import (
    MemoryEstimate,
    Storage,
    answering_memory,
    head_is_shared,
    loading_bytes,
    tuning_memory,
    weight_bytes,
)
from ptuning.methods.method import TuningCost
from ptuning.model.sizes import ModelSizes
from ptuning.settings.arguments import BUILT_IN_MODEL, ModelArguments
from ptuning.settings.parsing import Given, SettingsParser

if TYPE_CHECKING:
    from ptuning.checkpoint.checkpoint import Checkpoint


@dataclass
class UseArguments:
    """What the model is to do."""

    train: bool = field(default=False, metadata={"help": "Tuning a prefix; without it: answering."})
    quantize_embeddings: bool = field(
        default=False,
        metadata={"help": "As if embedding and head were quantised too.", "aliases": ("quantization_embeddings",)},
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows of one micro-step (tuning).", "min": 1})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-steps of one step (tuning).", "min": 1})
    max_source_length: int = field(default=1024, metadata={"help": "Longest prompt (tuning).", "min": 1})
    max_target_length: int = field(default=128, metadata={"help": "Longest reply (tuning).", "min": 1})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Compute activations twice (tuning)."})
    max_length: int = field(default=2048, metadata={"help": "Prompt and answer together, in tokens (answering).", "min": 1})
    batch_size: int = field(default=1, metadata={"help": "Rows answered at a time (answering).", "min": 1})
    json: bool = field(default=False, metadata={"help": "One line of JSON, in bytes, in place of the table."})


@dataclass(frozen=True)
class _Subject:
    """A model as it would be loaded."""

    name: str
    sizes: ModelSizes
    storage: Storage
    tuned: TuningCost
    stored_bits: int
    stored_float_bytes: int
    dtype: str


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings or a model that do not fit.
    """
    parser = SettingsParser(
        {"model and prefix": ModelArguments, "use": UseArguments},
        prog="ptuning info",
        description="Predict the memory of a model from its config.json. Example: ptuning info THUDM/chatglm-6b "
        "--quantization_bit 4 --train --pre_seq_len 128 --per_device_train_batch_size 1 --max_source_length 64 "
        "--max_target_length 64",
        positional="[MODEL]",
    )
    given = parser.parse(argv)
    use: UseArguments = given.build(UseArguments)
    subject = _subject(_model_settings(given), use)
    estimate = predict(subject, use)
    loading = weight_bytes(subject.sizes, subject.storage) + loading_bytes(
        subject.sizes, subject.storage, subject.stored_bits, subject.stored_float_bytes
    )
    if use.json:
        print_json(_values(subject, use, estimate, loading))
        return 0
    for line in _table(subject, use, estimate, loading):
        print_line(line)
    return 0


def predict(subject: Any, use: UseArguments) -> MemoryEstimate:
    """The estimate for a model and a use."""
    if not use.train:
        return answering_memory(
            subject.sizes, subject.storage, subject.tuned, batch=use.batch_size, length=use.max_length
        )
    return tuning_memory(
        subject.sizes,
        subject.storage,
        subject.tuned,
        batch=use.per_device_train_batch_size,
        source=use.max_source_length,
        target=use.max_target_length,
        accumulation=use.gradient_accumulation_steps,
        checkpointing=use.gradient_checkpointing,
    )


def _model_settings(given: Given) -> ModelArguments:
    """The model named first, or by its flag; nothing at all is the built-in one, or a checkpoint's base model."""
    settings: ModelArguments = given.build(ModelArguments)
    if given.folder is not None:
        if settings.model_name_or_path is not None:
            raise UserError(f"{given.folder} and --model_name_or_path {settings.model_name_or_path}: name one model")
        settings.model_name_or_path = given.folder
    if settings.model_name_or_path is None and settings.ptuning_checkpoint is None:
        settings.model_name_or_path = BUILT_IN_MODEL
    return settings


def _subject(settings: ModelArguments, use: UseArguments) -> _Subject:
    """Read ``config.json`` and the checkpoint, if any; nothing else."""
    import torch

    from ptuning.checkpoint.checkpoint import choose_quantization, open_named
    from ptuning.checkpoint.placement import cpu_dtype, parse_dtype, pick_device
    from ptuning.kernels.dispatch import uses_native

    opened = open_named(settings)
    config, folder = opened.config, opened.folder
    bits = choose_quantization(config.quantization_bit, settings.quantization_bit, folder)
    embeddings = bool(bits) and (config.quantization_embeddings or use.quantize_embeddings)
    device = pick_device(settings.device)
    stored = parse_dtype(config.dtype) or parse_dtype("float16")
    dtype = parse_dtype(settings.dtype) or (cpu_dtype(config, bits) if device.type == "cpu" else None) or stored
    sizes = ModelSizes.from_config(config.to_dict())
    stored_float = int(stored.itemsize) if stored else 2
    on_file = Storage(config.quantization_bit, config.quantization_embeddings, stored_float)
    shared = head_is_shared(sizes, on_file, _file_bytes(folder)) and embeddings == config.quantization_embeddings
    width = int(dtype.itemsize) if dtype else 2
    on_cpu = device.type == "cpu"
    as_stored = min(stored_float, width) if bits and on_cpu else 0  # embedding and head of a quantised model
    storage = Storage(
        bits, embeddings, width, shared, "cpu" if on_cpu else "accelerator", as_stored,
        native=on_cpu and uses_native(dtype or torch.float16),
    )
    return _Subject(
        opened.name, sizes, storage, _tuned(settings, opened, sizes), config.quantization_bit, stored_float,
        str(dtype).removeprefix("torch."),
    )


def _tuned(settings: ModelArguments, opened: Checkpoint, sizes: ModelSizes) -> TuningCost:
    """What the checkpoint adds, or what is planned by the flags or by the model folder itself."""
    from ptuning.methods.registry import METHODS

    if opened.adapter is None:
        return METHODS[DEFAULT_METHOD].planned_cost(settings, opened.config)
    return opened.adapter.cost(sizes)


def _file_bytes(folder: Path) -> int | None:
    """Size of the weight files where they lie here, of one form."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = [path.stat().st_size for path in folder.glob(pattern)]
        if found:
            return sum(found)
    return None


def _values(subject: _Subject, use: UseArguments, estimate: MemoryEstimate, loading: int) -> dict[str, Any]:
    kind: Literal["tuning", "answering"] = "tuning" if use.train else "answering"
    return {
        "model": subject.name,
        "dtype": subject.dtype,
        "quantization_bit": subject.storage.bits,
        "quantization_embeddings": subject.storage.embeddings,
        "device": subject.storage.device,
        "pre_seq_len": subject.tuned.slots or None,
        "use": kind,
        "parts": estimate.parts,
        "moment": estimate.moment,
        "total": estimate.total,
        "loading": loading,
    }


def _table(subject: _Subject, use: UseArguments, estimate: MemoryEstimate, loading: int) -> list[str]:
    sizes, storage = subject.sizes, subject.storage
    count = sizes.num_layers * sizes.linear_weights + 2 * sizes.embedding_weights
    stored = f"INT{storage.bits}{' (embeddings too)' if storage.embeddings else ''}, " if storage.bits else ""
    lines = [
        f"{subject.name}: {sizes.num_layers} layers of {sizes.hidden_size}, {count / 1e9:.2f} billion weights; "
        f"{stored}{subject.dtype}, on {'a CPU' if storage.device == 'cpu' else 'a GPU'}"
    ]
    if subject.tuned.trained:
        lines.append(f"{subject.tuned.text}: {subject.tuned.trained / 1e6:.1f} million trained numbers")
    if use.train:
        lines.append(
            f"tuning, {use.per_device_train_batch_size} x {use.gradient_accumulation_steps} rows of "
            f"{use.max_source_length} + {use.max_target_length} tokens"
            f"{', gradient checkpointing' if use.gradient_checkpointing else ''}; at its most {estimate.moment}:"
        )
    else:
        lines.append(f"answering, {use.batch_size} rows of {use.max_length} tokens:")
    parts = {name: value for name, value in estimate.parts.items() if value} | {"total": estimate.total}
    lines += table([[name, _size(value)] for name, value in parts.items()], first=16, others=8, indent="  ")
    lines.append(f"while loading, before that: {_size(loading).strip()}")
    more = "0.5 GB of Python and its libraries" if storage.device == "cpu" else "0.5 GB of the driver on the GPU"
    lines.append(f"(not counted: about {more})")
    return lines


def _size(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"
