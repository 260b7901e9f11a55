"""Whether a checkpoint's tensors are those of the model to build, told from names, shapes and dtypes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.checkpoint.mapped_tensors import TensorFacts
from ptuning.core.errors import UserError
from ptuning.core.reading import shortened
from ptuning.methods.prefix_tensors import FLOATS, PREFIX_KEY, PrefixShape, read_shape, refuse_not_float
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families import family_of
from ptuning.model.families.family import TensorNames
from ptuning.model.quantization import QuantizedEmbedding, QuantizedLinear

_INDEX = re.compile("([0-9]{1,9})\\.")


def check_tensors(model: Any, facts: Mapping[str, TensorFacts], where: Path) -> list[str]:
    """Hold a checkpoint against a model.

    Args:
        model: on the meta device.
        facts: of every tensor in the files.
        where: the folder, for messages.

    Returns:
        names that the model has no use for.

    Raises:
        UserError: the first tensor that does not fit, or those that are missing.
    """
    modules, slots = dict(model.named_modules()), dict(model.named_parameters())
    names = family_of(model.config).names
    filled: set[str] = set()
    unused: list[str] = []
    for name, fact in facts.items():
        if name in slots:
            parent = modules[name.rpartition(".")[0]]
            _check_tensor(parent, name, fact, slots[name], names, where)
            filled.add(name)
            if _is_packed(parent) and name.endswith(".weight") and fact.dtype in FLOATS:
                filled.add(f"{name}_scale")  # made when the weight is quantised on the way
        elif not name.startswith(PREFIX_KEY) and not name.endswith(names.ignored):
            unused.append(name)
    _check_layers(unused, model.config.num_layers, names, where)
    missing = sorted(set(slots) - filled)
    if missing:
        raise UserError(_lacking(missing, len(slots), bool(filled), facts, unused, where))
    return unused


def check_sizes(config: ChatGLMConfig, facts: Mapping[str, TensorFacts], where: Path) -> None:
    """Hold the sizes in a configuration against the files before a model of these sizes is built, even an empty one.

    Args:
        config: of the model to build.
        facts: of every tensor in the files.
        where: the folder, for messages.

    Raises:
        UserError: the files hold fewer layers, or embeddings of another shape.
    """
    names = family_of(config).names
    layers = {layer for name in facts if (layer := _layer_of(name, names)) is not None}
    if layers and config.num_layers > max(layers) + 1:
        raise UserError(
            f"{where} holds {max(layers) + 1} layers, but config.json has num_layers {config.num_layers}: weights and "
            "config.json are of different models, or a part of the weights is missing"
        )
    embedding = facts.get(names.embedding)
    expected = (config.vocab_size, config.hidden_size)
    if embedding is not None and embedding.dtype in FLOATS and embedding.shape != expected:
        raise UserError(_of_another_shape(names.embedding, embedding.shape, expected, where))


def _layer_of(name: str, names: TensorNames) -> int | None:
    """The index of the layer that a tensor belongs to; None for the others."""
    index = _INDEX.match(name, len(names.layers)) if name.startswith(names.layers) else None
    return None if index is None else int(index[1])


def stored_prefix(
    facts: Mapping[str, TensorFacts], config: ChatGLMConfig, length: int | None, projection: bool, folder: Path
) -> PrefixShape | None:
    """The shape of a prefix that stands in the model's own files; None where there is none.

    Args:
        facts: of every tensor in the files.
        config: of the model.
        length: pre_seq_len by flag or ``config.json``, if any; likewise ``projection``.
        folder: for messages.

    Raises:
        UserError: one that contradicts the configuration or a flag.
    """
    shapes = {name.removeprefix(PREFIX_KEY): fact.shape for name, fact in facts.items() if name.startswith(PREFIX_KEY)}
    if not shapes or len(shapes) == len(facts):  # none, or nothing else: check_tensors has the words for that
        return None
    refuse_not_float({name: fact.dtype for name, fact in facts.items() if name.startswith(PREFIX_KEY)}, folder)
    stored = read_shape(shapes, folder)
    stored.check_model(config, folder)
    if length not in (None, stored.pre_seq_len) or (projection and not stored.projection):
        raise UserError(
            f"{folder} holds a prefix with pre_seq_len {stored.pre_seq_len}{_with(stored.projection)}; pre_seq_len {length}"
            f"{_with(projection)} is asked for by flag or config.json: leave them out, both are read off the file"
        )
    return stored


def _with(projection: bool) -> str:
    return " and projection" if projection else ""


def _of_another_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], where: Path) -> str:
    return (
        f"{where}: {name} has shape {list(shape)} on file, config.json asks for {list(expected)}: "
        "weights and config.json are of different models"
    )


def _check_tensor(parent: Any, name: str, fact: TensorFacts, slot: Tensor, names: TensorNames, where: Path) -> None:
    """Refuse one tensor whose shape or storage is not what the model has room for."""
    expected = tuple(slot.shape)
    if name.endswith(".weight") and len(expected) == 2:
        bits = parent.bits if _is_packed(parent) else 0
        dense = (expected[0], expected[1] * 8 // bits if bits else expected[1])
        if fact.dtype == torch.int8:
            _check_packed(name, fact.shape, bits, dense, _layer_of(name, names) is not None, where)
        else:
            expected = dense
    if fact.shape != expected:
        raise UserError(_of_another_shape(name, fact.shape, expected, where))
    if fact.dtype not in FLOATS and slot.dtype != fact.dtype:
        raise UserError(f"{where}: {name} is stored as {fact.dtype}; needed is float16, bfloat16 or float32")


def _check_packed(
    name: str, shape: tuple[int, ...], bits: int, dense: tuple[int, int], in_layer: bool, where: Path
) -> None:
    """Refuse quantised storage that the configuration does not promise."""
    forms: dict[tuple[int, ...], int] = {dense: 8, (dense[0], dense[1] // 2): 4}
    stored = forms.get(shape)
    if stored is None or stored == bits:
        return  # another shape altogether is the caller's to refuse
    if bits:
        raise UserError(
            f"{where} is quantised to {stored} bits ({name} is int8 {list(shape)}), but quantization_bit is {bits} by flag "
            "or config.json: leave the flag out, or take config.json from the same release as the weights"
        )
    key = "quantization_bit" if in_layer else "quantization_embeddings"
    raise UserError(
        f"{where}: {name} is int8, but config.json has no {key}: this is a checkpoint quantised to {stored} bits with "
        "the config.json of another; take both from one release"
    )


def _check_layers(unused: list[str], layers: int, names: TensorNames, where: Path) -> None:
    """A file with more layers than the configuration belongs to another model."""
    beyond = [name for name in unused if (layer := _layer_of(name, names)) is not None and layer >= layers]
    if beyond:
        raise UserError(
            f"{where} holds {shortened(beyond[0], 80)}, but config.json has num_layers {layers}: weights and config.json "
            "are of different models"
        )


def _lacking(
    missing: list[str], whole: int, partly: bool, facts: Mapping[str, TensorFacts], unused: list[str], where: Path
) -> str:
    """The message for tensors that are missing."""
    if not partly and any(name.startswith(PREFIX_KEY) for name in facts):
        return (
            f"{where} holds a prefix, not a whole model: give the base model as --model_name_or_path and this folder as "
            "--ptuning_checkpoint"
        )
    return (
        f"{where} lacks {len(missing)} of {whole} tensors, for example {', '.join(missing[:3])}"
        + (f" (and holds {len(unused)} unknown ones, such as {shortened(unused[0], 80)})" if unused else "")
        + "; a model with made-up weights would answer nonsense: give the whole ChatGLM-6B checkpoint"
    )


def _is_packed(module: Any) -> bool:
    return isinstance(module, QuantizedLinear | QuantizedEmbedding)
