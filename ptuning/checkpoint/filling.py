"""Tensors of weight files to the places in a model where they belong, one by one: quantised or widened on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptuning.checkpoint.weight_files import WeightFiles
from ptuning.core.errors import UserError
from ptuning.kernels.allocator import on_large_pages
from ptuning.methods.prefix_tensors import PREFIX_KEY
from ptuning.model.families import family_of
from ptuning.model.families.family import TensorNames
from ptuning.model.half_storage import HalfEmbedding, HalfLinear
from ptuning.model.quantization import QuantizedEmbedding, QuantizedLinear, quantize_weight


def fill(
    model: Any,
    files: WeightFiles,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    where: Path,
) -> dict[str, Tensor]:
    """Fill a model that was built on the meta device, tensor by tensor.

    A float weight that meets a quantised linear is quantised on the way, so the float model never exists as a whole.

    Args:
        model: on the meta device.
        files: checked against the model, see :func:`~ptuning.checkpoint.weight_checks.check_tensors`.
        dtype: of the floating-point tensors; None keeps each file's own.
        device: where the tensors go.
        where: folder, for messages.

    Returns:
        the tensors of a prefix that the files hold as well (without their common key).

    Raises:
        UserError: a weight that cannot be quantised.
    """
    modules, slots, names = dict(model.named_modules()), dict(model.named_parameters()), family_of(model.config).names
    twin_of = _one_storage(names)
    prefix: dict[str, Tensor] = {}
    norms: dict[str, bytes] = {}
    ends: dict[str, Tensor] = {}
    for name, tensor in files.tensors():
        if name.startswith(PREFIX_KEY):
            prefix[name.removeprefix(PREFIX_KEY)] = tensor.clone()
        elif name in slots:
            if names.norms in name:
                norms[name] = tensor.to(torch.float16).contiguous().view(torch.uint8).numpy().tobytes()
            parent = modules[name.rpartition(".")[0]]
            if name in twin_of and model.config.quantization_bit:
                twin, ends[name] = ends.get(twin_of[name]), tensor
                if twin is not None and _is_same_storage(twin, tensor):
                    shared = modules[twin_of[name].rpartition(".")[0]].weight.detach()
                    parent.weight = nn.Parameter(shared, requires_grad=slots[name].requires_grad)
                    continue
            _fill(parent, name, tensor, slots[name].requires_grad, dtype, device, where)
    rows_dtype = dtype or model.transformer.final_layernorm.weight.dtype
    embedding = model.transformer.word_embeddings
    if isinstance(embedding, QuantizedEmbedding):
        embedding.register_buffer("_dtype_marker", torch.empty(0, dtype=rows_dtype, device=device), persistent=False)
    elif isinstance(embedding, HalfEmbedding):
        embedding.rows_dtype = rows_dtype
    # The norms tell models apart, are never quantised, and are the same in every layout of the files.
    fingerprint = hashlib.sha256(b"".join(name.encode() + norms[name] for name in sorted(norms)))
    model.base_fingerprint = fingerprint.hexdigest()[:16]
    return prefix


def _one_storage(names: TensorNames) -> dict[str, str]:
    """The published INT4 file holds one storage as embedding and head: the name of the one by the other's. A quantised model
    is never tuned as a whole, so there both may stay one in memory, 1.07 GB less; the weights of a float model become
    separate, as they are when it is trained."""
    return {names.embedding: names.head, names.head: names.embedding}


def _is_same_storage(first: Tensor, second: Tensor) -> bool:
    same = first.data_ptr() == second.data_ptr() and first.shape == second.shape and first.dtype == second.dtype
    return same and first.is_floating_point() and first.stride() == second.stride()


def _fill(
    parent: nn.Module,
    name: str,
    tensor: Tensor,
    trainable: bool,
    dtype: torch.dtype | None,
    device: torch.device,
    where: Path,
) -> None:
    """Put one tensor of a file, checked before, where it belongs."""
    leaf = name.rpartition(".")[2]
    target_dtype = dtype
    if isinstance(parent, QuantizedLinear | QuantizedEmbedding):
        if leaf == "weight" and tensor.is_floating_point():
            try:
                packed, scale = quantize_weight(tensor, parent.bits, device)
            except UserError as error:
                raise UserError(f"{where}: {name}: {error}") from error
            parent.weight = nn.Parameter(packed, requires_grad=False)
            parent.weight_scale = nn.Parameter(scale, requires_grad=False)
            return
        target_dtype = {"weight": torch.int8, "weight_scale": torch.float16}.get(leaf, dtype)
    elif isinstance(parent, HalfLinear | HalfEmbedding) and dtype is not None and device.type == "cpu":
        target_dtype = tensor.dtype if tensor.dtype.itemsize < dtype.itemsize else dtype  # widened where it is read
    # A copy, so that nothing keeps the mapped file alive.
    value = on_large_pages(torch.empty(tensor.shape, dtype=target_dtype or tensor.dtype, device=device))
    value.copy_(tensor)
    setattr(parent, leaf, nn.Parameter(value, requires_grad=trainable))
