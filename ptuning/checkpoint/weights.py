"""Backbone weights: every published layout, checked before it is read, assigned tensor by tensor."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ptuning.checkpoint.hub import resolve_folder
from ptuning.checkpoint.placement import one_device, parse_dtype
from ptuning.checkpoint.weight_checks import check_sizes, check_tensors
from ptuning.checkpoint.weight_files import TensorFacts, WeightFiles, find_weights, read_json
from ptuning.core.errors import UserError
from ptuning.core.reading import listed
from ptuning.kernels.allocator import on_large_pages
from ptuning.methods.prefix_tensors import PREFIX_KEY, PrefixShape, read_shape, refuse_not_finite, refuse_not_float
from ptuning.model.config import ChatGLMConfig, check_config
from ptuning.model.half_storage import HalfEmbedding, HalfLinear
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of
from ptuning.model.quantization import QuantizedEmbedding, QuantizedLinear, quantize_weight

logger = logging.getLogger(__name__)


def read_config(folder: Path, **overrides: Any) -> ChatGLMConfig:
    """The configuration of a model folder, refused where it is no ChatGLM-6B."""
    values = read_json(folder / "config.json")
    check_config(values, str(folder / "config.json"))
    config = ChatGLMConfig.from_dict(values | overrides)
    config.name_or_path = str(folder)
    return config


def load_weights(
    model: Any,
    files: WeightFiles,
    facts: Mapping[str, TensorFacts],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    where: Path,
) -> dict[str, Tensor]:
    """Fill a model that was built on the meta device, tensor by tensor.

    Names, shapes and storage are checked before the first tensor is read. A float weight that meets a quantised linear is
    quantised on the way, so the float model never exists as a whole.

    Args:
        model: on the meta device.
        files: checked weight files.
        facts: what ``files.facts()`` says.
        dtype: of the floating-point tensors; None keeps each file's own.
        device: where the tensors go.
        where: folder, for messages.

    Returns:
        the tensors of a prefix that the files hold as well (without their common key).

    Raises:
        UserError: a missing tensor, another shape, or a storage that the configuration does not promise.
    """
    unused = check_tensors(model, facts, where)
    if unused:
        logger.warning("%s holds %d tensors that are not used: %s", where, len(unused), listed(unused, 5))
    modules, slots = dict(model.named_modules()), dict(model.named_parameters())
    prefix: dict[str, Tensor] = {}
    norms: dict[str, bytes] = {}
    ends: dict[str, Tensor] = {}
    for name, tensor in files.tensors():
        if name.startswith(PREFIX_KEY):
            prefix[name.removeprefix(PREFIX_KEY)] = tensor.clone()
        elif name in slots:
            if "layernorm" in name:
                norms[name] = tensor.to(torch.float16).contiguous().view(torch.uint8).numpy().tobytes()
            parent = modules[name.rpartition(".")[0]]
            if name in _ONE_STORAGE and model.config.quantization_bit:
                twin, ends[name] = ends.get(_ONE_STORAGE[name]), tensor
                if twin is not None and _is_same_storage(twin, tensor):
                    shared = modules[_ONE_STORAGE[name].rpartition(".")[0]].weight.detach()
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


# The published INT4 file holds one storage under both names. A quantised model is never tuned as a whole, so there both may
# stay one in memory, 1.07 GB less; the weights of a float model become separate, as they are when it is trained.
_EMBEDDING, _HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
_ONE_STORAGE = {_EMBEDDING: _HEAD, _HEAD: _EMBEDDING}


def _is_same_storage(one: Tensor, other: Tensor) -> bool:
    same = one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.dtype == other.dtype
    return same and one.is_floating_point() and one.stride() == other.stride()


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
    wanted = dtype
    if isinstance(parent, QuantizedLinear | QuantizedEmbedding):
        if leaf == "weight" and tensor.is_floating_point():
            try:
                packed, scale = quantize_weight(tensor, parent.bits, device)
            except UserError as error:
                raise UserError(f"{where}: {name}: {error}") from error
            parent.weight = nn.Parameter(packed, requires_grad=False)
            parent.weight_scale = nn.Parameter(scale, requires_grad=False)
            return
        wanted = {"weight": torch.int8, "weight_scale": torch.float16}.get(leaf, dtype)
    elif isinstance(parent, HalfLinear | HalfEmbedding) and dtype is not None and device.type == "cpu":
        wanted = tensor.dtype if tensor.dtype.itemsize < dtype.itemsize else dtype  # widened where it is read
    # A copy, so that nothing keeps the mapped file alive.
    value = on_large_pages(torch.empty(tensor.shape, dtype=wanted or tensor.dtype, device=device))
    value.copy_(tensor)
    setattr(parent, leaf, nn.Parameter(value, requires_grad=trainable))


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
    """What stands behind ``ChatGLMForConditionalGeneration.from_pretrained`` and :func:`ptuning.load_model`.

    Args:
        cls: the model class.
        name: folder or hub name.
        args: none are taken.
        kwargs: ``config`` (or its folder), ``dtype`` (or ``torch_dtype``; None or "auto": the file's own), ``device`` or
            ``device_map`` (one device), ``quantization_bit``, ``revision``, ``cache_dir``, ``token``,
            ``local_files_only``, ``force_download``, ``output_loading_info``, and attributes of the configuration.

    Raises:
        UserError: see :func:`find_weights`, :func:`load_weights` and :func:`choose_quantization`.
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
    small = resolve_folder(name, weights=False, **hub)  # a model of another kind is refused before 13 GB are fetched
    own = read_config(small)
    config = _given_config(kwargs.pop("config", None), own, kwargs)
    asked = config.quantization_bit if bits is None and config is not own else bits
    config.quantization_bit = choose_quantization(own.quantization_bit, asked, small)
    if dtype is None and config.dtype != own.dtype:
        dtype = parse_dtype(config.dtype)
    folder = resolve_folder(name, weights=True, **hub)
    files = find_weights(folder)
    if files is None:
        raise UserError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")
    model = _build(cls, config, files, dtype, device, folder)
    model.name_or_path = config.name_or_path = os.fspath(name)
    model.eval()
    info: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    return (model, info) if report else model


def _given_config(given: Any, own: ChatGLMConfig, changes: dict[str, Any]) -> ChatGLMConfig:
    """The configuration to build from: one that was handed over, or the folder's own, with single values changed."""
    if isinstance(given, str | os.PathLike):
        given = read_config(resolve_folder(given, weights=False))
    config = own if given is None else given
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


def _build(
    cls: Any, config: ChatGLMConfig, files: WeightFiles, dtype: torch.dtype | None, device: torch.device, folder: Path
) -> Any:
    """Make the model on the meta device, fill it, and attach the prefix that the files hold or the configuration wants."""
    facts = files.facts()
    check_sizes(config, facts, folder)
    wanted, projection = config.pre_seq_len, config.prefix_projection
    config.pre_seq_len = None
    try:
        with torch.device("meta"), _Undrawn():
            model = cls(config)
        stored = _stored_prefix(facts, config, wanted, projection, folder)
        prefix = load_weights(model, files, facts, dtype=dtype, device=device, where=folder)
    finally:
        config.pre_seq_len, config.prefix_projection = wanted, projection
    config.dtype = model.transformer.final_layernorm.weight.dtype
    if stored is not None:
        refuse_not_finite(prefix, folder)
        encoder = PrefixEncoder(prefix_config_of(config, stored.pre_seq_len, stored.projection))
        encoder.load_state_dict(prefix)
        model.attach_prefix(encoder)
    elif wanted is not None:
        logger.info("new prefix of %d tokens, to be trained or loaded", wanted)
        model.attach_prefix(PrefixEncoder(prefix_config_of(config, wanted, projection)))
    return model


def _stored_prefix(
    facts: Mapping[str, TensorFacts], config: ChatGLMConfig, wanted: int | None, projection: bool, folder: Path
) -> PrefixShape | None:
    """The shape of a prefix that stands in the model's own files; None where there is none.

    Raises:
        UserError: one that contradicts the configuration or a flag.
    """
    shapes = {name.removeprefix(PREFIX_KEY): fact.shape for name, fact in facts.items() if name.startswith(PREFIX_KEY)}
    if not shapes or len(shapes) == len(facts):  # none, or nothing else: check_tensors has the words for that
        return None
    refuse_not_float({name: fact.dtype for name, fact in facts.items() if name.startswith(PREFIX_KEY)}, folder)
    stored = read_shape(shapes, folder)
    stored.check_model(config, folder)
    if wanted not in (None, stored.pre_seq_len) or (projection and not stored.projection):
        raise UserError(
            f"{folder} holds a prefix with pre_seq_len {stored.pre_seq_len}{_with(stored.projection)}; pre_seq_len {wanted}"
            f"{_with(projection)} is asked for by flag or config.json: leave them out, both are read off the file"
        )
    return stored


def _with(projection: bool) -> str:
    return " and projection" if projection else ""


def choose_quantization(stored: int, asked: int | None, where: Path) -> int:
    """Bits of the model to build, from what the checkpoint holds and what was asked for.

    Raises:
        UserError: a checkpoint quantised one way and asked for another.
    """
    if asked not in (None, 0, 4, 8) or isinstance(asked, bool | float):
        raise UserError(f"quantization_bit {asked} was given; allowed are 4 and 8 (0 or none: as the checkpoint is)")
    if stored and asked and stored != asked:
        raise UserError(
            f"{where} is quantised to {stored} bits, but quantization_bit {asked} was asked for: leave the flag out, or "
            "give the float16 checkpoint"
        )
    return stored or asked or 0
