"""Backbone weights: from a checkpoint to a model that is filled with them, or a word about what does not fit."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ptuning.checkpoint.checkpoint import Checkpoint, choose_quantization, read_config
from ptuning.checkpoint.filling import fill
from ptuning.checkpoint.hub import resolve_folder
from ptuning.checkpoint.placement import one_device, parse_dtype
from ptuning.checkpoint.weight_checks import check_sizes, check_tensors, stored_prefix
from ptuning.checkpoint.weight_files import WeightFiles
from ptuning.core.errors import UserError
from ptuning.core.reading import listed
from ptuning.methods.prefix_tensors import refuse_not_finite
from ptuning.model.config import ChatGLMConfig
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

logger = logging.getLogger(__name__)


_HUB_KEYWORDS = ("revision", "cache_dir", "token", "local_files_only", "force_download")

# Keywords of transformers that mean nothing here: there is no remote code, and loading is always lean.
_OTHER_KEYWORDS = (
    "trust_remote_code",
    "code_revision",
    "low_cpu_mem_usage",
    "attn_implementation",
    "use_safetensors",
    "adapter_kwargs",
    "resume_download",
    "use_auth_token",
    "weights_only",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "_from_auto",
    "_commit_hash",
    "_from_pipeline",
    "commit_hash",
    "empty_init",
)


def from_pretrained(cls: Any, name: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
    """The implementation of ``ChatGLMForConditionalGeneration.from_pretrained``.

    Args:
        cls: the model class.
        name: folder or hub name.
        args: none are taken.
        kwargs: ``config`` (or its folder), ``dtype`` (or ``torch_dtype``; None or "auto": the file's own), ``device`` or
            ``device_map`` (one device), ``quantization_bit``, ``revision``, ``cache_dir``, ``token``,
            ``local_files_only``, ``force_download``, ``output_loading_info``, and attributes of the configuration.

    Raises:
        UserError: see :func:`build`, :func:`choose_quantization` and :meth:`Checkpoint.weights`.
    """
    if args:
        raise UserError("from_pretrained takes keywords only")
    hub = {key: kwargs.pop(key) for key in _HUB_KEYWORDS if key in kwargs}
    for ignored in _OTHER_KEYWORDS:
        kwargs.pop(ignored, None)
    report = kwargs.pop("output_loading_info", False)
    dtype = parse_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
    device = one_device(kwargs.pop("device", None), kwargs.pop("device_map", None))
    bits = kwargs.pop("quantization_bit", None)
    folder = resolve_folder(name, weights=False, **hub)  # a model of another kind is refused before 13 GB are fetched
    opened = Checkpoint(os.fspath(name), folder, read_config(folder), hub=hub)
    config = _given_config(kwargs.pop("config", None), opened, kwargs)
    requested_bits = config.quantization_bit if bits is None else bits
    config.quantization_bit = choose_quantization(opened.config.quantization_bit, requested_bits, folder)
    if dtype is None and config.dtype != opened.config.dtype:
        dtype = parse_dtype(config.dtype)
    files = opened.weights()
    model = build(cls, config, files, name=opened.name, device=device, dtype=dtype)
    info: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    return (model, info) if report else model


def _given_config(config_or_folder: Any, opened: Checkpoint, changes: dict[str, Any]) -> ChatGLMConfig:
    """The configuration to build from: one that was handed over, or the folder's own, with single values changed."""
    if isinstance(config_or_folder, str | os.PathLike):
        config_or_folder = read_config(resolve_folder(config_or_folder, weights=False))
    config = opened.new_config() if config_or_folder is None else config_or_folder
    for key, value in changes.items():
        if config.attribute_map.get(key, key) in vars(config):
            setattr(config, key, value)
        elif value:  # a None or False says what is so anyway
            raise UserError(
                f"from_pretrained got {key}={value!r}, which it does not know: quantised loading is quantization_bit=4 or "
                "8, other names must be those of config.json"
            )
    return config


class _Undrawn(TorchFunctionMode):
    """Leaves out the random start of new modules. Their weights come from a file, and on the meta device torch draws
    nothing anyway, but imports its compiler to find that out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(
    kind: Any, config: ChatGLMConfig, files: WeightFiles, *, name: str, device: torch.device, dtype: torch.dtype | None
) -> Any:
    """Make a model on the meta device, fill it, and attach the prefix that the files hold or the configuration wants.

    Args:
        kind: class of the model.
        config: to build from; says afterwards what was built.
        files: the weights.
        name: of the model, as the user gave it.
        device: where the tensors go.
        dtype: of the floating-point tensors; None keeps each file's own.

    Returns:
        the model in eval mode.

    Raises:
        UserError: weights of another model, a missing tensor, or a storage that the configuration does not promise.
    """
    folder, facts = files.paths[0].parent, files.facts()
    length, projection = config.pre_seq_len, config.prefix_projection
    check_sizes(config, facts, folder)
    config.pre_seq_len = None
    try:
        with torch.device("meta"), _Undrawn():
            model = kind(config)
        unused = check_tensors(model, facts, folder)
        if unused:
            logger.warning("%s holds %d tensors that are not used: %s", folder, len(unused), listed(unused, 5))
        stored = stored_prefix(facts, config, length, projection, folder)
        prefix = fill(model, files, dtype=dtype, device=device, where=folder)
    finally:
        config.pre_seq_len, config.prefix_projection = length, projection
    config.dtype = model.transformer.final_layernorm.weight.dtype
    if stored is not None:
        refuse_not_finite(prefix, folder)
        encoder = PrefixEncoder(prefix_config_of(config, stored.pre_seq_len, stored.projection))
        encoder.load_state_dict(prefix)
        model.attach_prefix(encoder)
    elif length is not None:
        logger.info("new prefix of %d tokens, to be trained or loaded", length)
        model.attach_prefix(PrefixEncoder(prefix_config_of(config, length, projection)))
    model.name_or_path = config.name_or_path = name
    return model.eval()
