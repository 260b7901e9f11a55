"""Backbone weights: every published layout, checked before it is read, assigned tensor by tensor."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptuning.blocks.config import ChatGLMConfig, check_config
from ptuning.blocks.prefix_encoder import PrefixEncoder, prefix_config_of
from ptuning.blocks.quantization import QuantizedEmbedding, QuantizedLinear, quantize_weight
from ptuning.plain.errors import UserError
from ptuning.tuned.hub import resolve_folder
from ptuning.tuned.placement import one_device, parse_dtype
from ptuning.tuned.weight_files import WeightFiles, find_weights, read_json

logger = logging.getLogger(__name__)

PREFIX_KEY = "transformer.prefix_encoder."
"""Where the published state dict keeps the prefix encoder."""


def read_config(folder: Path, **overrides: Any) -> ChatGLMConfig:
    """The configuration of a model folder, refused where it is no ChatGLM-6B."""
    values = read_json(folder / "config.json")
    check_config(values, str(folder / "config.json"))
    config = ChatGLMConfig.from_dict(values | overrides)
    config.name_or_path = str(folder)
    return config


def load_weights(
    model: Any, files: WeightFiles, *, dtype: torch.dtype | None, device: torch.device, where: Path
) -> dict[str, Tensor]:
    """Fill a model that was built on the meta device, tensor by tensor.

    A float weight that meets a quantised linear is quantised on the way, so the float model never exists as a whole.

    Args:
        model: on the meta device.
        files: checked weight files.
        dtype: of the floating-point tensors; None keeps each file's own.
        device: where the tensors go.
        where: folder, for messages.

    Returns:
        the tensors of a prefix that the files hold as well (without their common key).

    Raises:
        UserError: a missing tensor, another shape, or a storage that the configuration does not promise.
    """
    modules = dict(model.named_modules())
    slots = dict(model.named_parameters())
    prefix: dict[str, Tensor] = {}
    unexpected: list[str] = []
    fingerprint = hashlib.sha256()
    filled: set[str] = set()
    for name, tensor in files.tensors():
        if name.startswith(PREFIX_KEY):
            prefix[name.removeprefix(PREFIX_KEY)] = tensor.clone()
        elif name in slots:
            if "layernorm" in name:
                half = tensor.to(torch.float16).contiguous()
                fingerprint.update(name.encode() + half.view(torch.uint8).numpy().tobytes())
            parent = modules[name.rpartition(".")[0]]
            filled |= _fill(parent, name, tensor, slots[name], dtype, device, where)
        elif not name.endswith("rotary_emb.inv_freq"):
            unexpected.append(name)
    missing = sorted(set(slots) - filled)
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of {len(slots)} tensors, for example {', '.join(missing[:3])}"
            + (f" (and holds {len(unexpected)} unknown ones, such as {unexpected[0]})" if unexpected else "")
            + "; a model with made-up weights would answer nonsense: give the whole ChatGLM-6B checkpoint"
        )
    if unexpected:
        logger.warning("%s holds %d tensors that are not used: %s", where, len(unexpected), ", ".join(unexpected[:5]))
    for module in modules.values():
        if isinstance(module, QuantizedEmbedding):
            marker = dtype or model.transformer.final_layernorm.weight.dtype
            module.register_buffer("_dtype_marker", torch.empty(0, dtype=marker, device=device), persistent=False)
    model.base_fingerprint = fingerprint.hexdigest()[:16]
    return prefix


def _fill(
    parent: nn.Module,
    name: str,
    tensor: Tensor,
    slot: Tensor,
    dtype: torch.dtype | None,
    device: torch.device,
    where: Path,
) -> set[str]:
    """Put one tensor of a file where it belongs; returns the names that are filled now."""
    leaf = name.rpartition(".")[2]
    quantised = isinstance(parent, QuantizedLinear | QuantizedEmbedding)
    if isinstance(parent, QuantizedLinear | QuantizedEmbedding) and leaf == "weight" and tensor.is_floating_point():
        expected = (slot.shape[0], slot.shape[1] * 8 // parent.bits)
        _check_shape(name, tuple(tensor.shape), expected, where)
        packed, scale = quantize_weight(tensor.to(device), parent.bits)
        parent.weight = nn.Parameter(packed, requires_grad=False)
        parent.weight_scale = nn.Parameter(scale, requires_grad=False)
        return {name, f"{name}_scale"}
    _check_shape(name, tuple(tensor.shape), tuple(slot.shape), where)
    if quantised and leaf in ("weight", "weight_scale"):
        wanted: torch.dtype | None = torch.int8 if leaf == "weight" else torch.float16
    elif not tensor.is_floating_point():
        raise UserError(
            f"{where}: {name} is {tensor.dtype}, but config.json has no quantization_bit; this is a quantised checkpoint "
            "with the wrong config.json"
        )
    else:
        wanted = dtype
    # A copy, so that nothing keeps the mapped file alive.
    value = torch.empty(tensor.shape, dtype=wanted or tensor.dtype, device=device)
    value.copy_(tensor)
    setattr(parent, leaf, nn.Parameter(value, requires_grad=slot.requires_grad))
    return {name}


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: Path) -> None:
    if found != expected:
        raise UserError(
            f"{where}: {name} has shape {list(found)} on file, config.json asks for {list(expected)}: "
            "weights and config.json are of different models"
        )


def from_pretrained(cls: Any, name: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
    """What stands behind ``ChatGLMForConditionalGeneration.from_pretrained`` and :func:`ptuning.load_model`.

    Args:
        cls: the model class.
        name: folder or hub name.
        args: none are taken.
        kwargs: ``config``, ``dtype`` (or ``torch_dtype``; None or "auto": the file's own), ``device`` or ``device_map``
            (one device), ``quantization_bit``, ``revision``, ``cache_dir``, ``token``, ``local_files_only``,
            ``force_download``, ``output_loading_info``; other names are attributes of the configuration.

    Raises:
        UserError: see :func:`find_weights`, :func:`load_weights` and :func:`choose_quantization`.
    """
    if args:
        raise UserError("from_pretrained takes keywords only")
    hub = {key: kwargs.pop(key) for key in _HUB_KEYWORDS if key in kwargs}
    for ignored in (*_OTHER_KEYWORDS, "use_auth_token"):
        kwargs.pop(ignored, None)
    report, config = kwargs.pop("output_loading_info", False), kwargs.pop("config", None)
    dtype = parse_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
    device = one_device(kwargs.pop("device", None), kwargs.pop("device_map", None))
    bits = kwargs.pop("quantization_bit", None)
    folder = resolve_folder(name, weights=True, **hub)
    own = read_config(folder)
    files = find_weights(folder)
    if files is None:
        raise UserError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")
    config = own if config is None else config
    for key, value in kwargs.items():
        setattr(config, key, value)
    config.quantization_bit = choose_quantization(own.quantization_bit, bits, folder)
    model, prefix = _build(cls, config, files, dtype, device, folder)
    model.name_or_path = config.name_or_path = os.fspath(name)
    if config.pre_seq_len is not None:
        encoder = PrefixEncoder(prefix_config_of(config, config.pre_seq_len, config.prefix_projection))
        if prefix:
            encoder.load_state_dict(prefix)
        else:
            logger.info("new prefix of %d tokens, to be trained or loaded", config.pre_seq_len)
        model.attach_prefix(encoder)
    model.eval()
    info: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    return (model, info) if report else model


_HUB_KEYWORDS = ("revision", "cache_dir", "token", "local_files_only", "force_download")

# Keywords of transformers that mean nothing here: there is no remote code, and loading is always lean.
_OTHER_KEYWORDS = (
    "trust_remote_code",
    "code_revision",
    "low_cpu_mem_usage",
    "attn_implementation",
    "use_safetensors",
    "adapter_kwargs",
    "subfolder",
    "resume_download",
    "weights_only",
    "_from_auto",
    "_commit_hash",
    "_from_pipeline",
    "commit_hash",
    "empty_init",
)


def _build(
    cls: Any, config: ChatGLMConfig, files: WeightFiles, dtype: torch.dtype | None, device: torch.device, folder: Path
) -> tuple[Any, dict[str, Tensor]]:
    """Make the model on the meta device and fill it; the prefix is attached later, by the caller."""
    pre_seq_len, projection = config.pre_seq_len, config.prefix_projection
    config.pre_seq_len = None
    try:
        with torch.device("meta"):
            model = cls(config)
        prefix = load_weights(model, files, dtype=dtype, device=device, where=folder)
    finally:
        config.pre_seq_len, config.prefix_projection = pre_seq_len, projection
    config.dtype = model.transformer.final_layernorm.weight.dtype
    return model, prefix


def choose_quantization(stored: int, asked: int | None, where: Path) -> int:
    """Bits of the model to build, from what the checkpoint holds and what was asked for.

    Raises:
        UserError: a checkpoint quantised one way and asked for another.
    """
    if asked not in (None, 0, 4, 8):
        raise UserError(f"quantization_bit {asked} was given; allowed are 4 and 8 (0 or none: as the checkpoint is)")
    if stored and asked and stored != asked:
        raise UserError(
            f"{where} is quantised to {stored} bits, but quantization_bit {asked} was asked for: leave the flag out, or "
            "give the float16 checkpoint"
        )
    return stored or asked or 0
