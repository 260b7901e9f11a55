"""The files of a prefix: our folder form, the published ``pytorch_model.bin``, and PEFT's adapter folder.

Our form is ``prefix_encoder.safetensors`` (published key names, float32) beside ``prefix_config.json`` with all that is
needed to chat with it: nobody repeats pre_seq_len by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptuning.core.reading import check_kinds
from ptuning.methods.method import AdapterFiles, CheckpointFiles
from ptuning.methods.peft_prefix import CONFIG_FILE as PEFT_FILE
from ptuning.methods.peft_prefix import read_peft_prefix
from ptuning.methods.prefix_tensors import (
    PREFIX_KEY,
    PrefixShape,
    PrefixTensors,
    read_shape,
    refuse_not_finite,
    refuse_not_float,
)
from ptuning.model.prefix_encoder import PrefixEncoder

WEIGHTS_FILE, CONFIG_FILE, PUBLISHED_FILE = "prefix_encoder.safetensors", "prefix_config.json", "pytorch_model.bin"
_WHOLE_MODEL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_SETTINGS_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,), "pre_seq_len": (int,), "prefix_projection": (bool,), "num_layers": (int,),
    "num_attention_heads": (int,), "hidden_size": (int,), "base_model": (str,), "base_fingerprint": (str,),
    "quantization_bit": (int,), "source_prefix": (str,), "history": (bool,), "legacy_first_round": (bool,),
    "max_source_length": (int,), "max_target_length": (int,),
}  # fmt: skip


class PrefixOnDisk(NamedTuple):
    """A prefix as its files hold it: tensors, their shape, settings, and the weight file."""

    tensors: PrefixTensors
    shape: PrefixShape
    settings: dict[str, Any]
    path: Path


def holds_prefix(files: CheckpointFiles) -> bool:
    """Whether there is a file that a prefix may stand in, a whole model's among them."""
    if files.named is not None:
        return files.has(files.named)
    return any(files.has(name) for name in (WEIGHTS_FILE, PEFT_FILE, PUBLISHED_FILE)) or bool(files.model_weights())


def is_prefix_alone(files: CheckpointFiles) -> bool:
    """Whether a folder is a prefix rather than a whole model, which may have a prefix lying beside it."""
    if any(files.is_file(name) for name in _WHOLE_MODEL):
        return False
    if files.is_file(PUBLISHED_FILE):
        return all(name.startswith(PREFIX_KEY) for name in files.tensor_names(PUBLISHED_FILE))
    return files.is_file(WEIGHTS_FILE) or files.is_file(PEFT_FILE)


def read_prefix(files: CheckpointFiles) -> PrefixOnDisk:
    """Read a prefix in any of its forms; its shape comes from the tensors.

    Raises:
        UserError: no prefix in the files, damaged ones, or files of different runs.
    """
    if files.named is None and files.has(PEFT_FILE) and not files.has(WEIGHTS_FILE):
        name, tensors, settings = read_peft_prefix(files)
    else:
        names = _weight_files(files)
        name, parts = names[0], {part: files.tensors(part, PREFIX_KEY) for part in names}
        settings = _read_settings(files) if name == WEIGHTS_FILE else {}
        for part, stored in parts.items():
            refuse_not_float({key: stored[key].dtype for key in stored}, files.folder / part)
        own_names = {key: key.removeprefix(PREFIX_KEY) for stored in parts.values() for key in stored}
        tensors = PrefixTensors(list(parts.values()), own_names)
    path = files.folder / name
    shape = read_shape({key: tuple(tensors.stored(key).shape) for key in tensors}, path)
    refuse_not_finite(tensors, path)
    shape.check_settings(settings, path, path.with_name(CONFIG_FILE))
    return PrefixOnDisk(tensors, shape, settings, path)


def _weight_files(files: CheckpointFiles) -> tuple[str, ...]:
    """The weight files that may hold the prefix: the one in our form, or those of a published checkpoint."""
    if files.named is not None:
        return (files.named,)
    for name in (WEIGHTS_FILE, PUBLISHED_FILE):  # before a model.safetensors: the published trainer puts a prefix there
        if files.has(name):
            return (name,)
    return tuple(files.model_weights())


def _read_settings(files: CheckpointFiles) -> dict[str, Any]:
    """What ``prefix_config.json`` says; nothing where there is none. It may be changed by hand (a base model that moved),
    so that is no error; but it does not go unsaid.

    Raises:
        UserError: it is damaged, or a setting is of the wrong type.
    """
    if not files.has(CONFIG_FILE):
        return {}
    settings = files.json(CONFIG_FILE)
    check_kinds(settings, _SETTINGS_KINDS, files.folder / CONFIG_FILE)
    files.warn_of_changes(CONFIG_FILE)
    return settings


def prefix_files(encoder: PrefixEncoder, settings: Mapping[str, Any] | None = None, form: str = "ptuning") -> AdapterFiles:
    """The files of a prefix.

    Args:
        encoder: the prefix encoder.
        settings: base model, fingerprint, prompt settings; must go into JSON.
        form: ``ptuning``, ``published`` (for the published loader: same keys, float32), or ``both``.
    """
    state = published_state(encoder)
    names = {"ptuning": (WEIGHTS_FILE,), "published": (PUBLISHED_FILE,), "both": (WEIGHTS_FILE, PUBLISHED_FILE)}[form]
    config = encoder.config
    described = {
        "format": "ptuning-prefix-1",
        "pre_seq_len": config.pre_seq_len,
        "prefix_projection": config.projection,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_size": config.hidden_size,
        **(settings or {}),
    }
    return AdapterFiles(dict.fromkeys(names, state), {CONFIG_FILE: described} if WEIGHTS_FILE in names else {})


def published_state(encoder: PrefixEncoder) -> dict[str, Tensor]:
    """The encoder's tensors under their published names, float32 on the CPU."""
    return {
        f"{PREFIX_KEY}{name}": tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in encoder.state_dict().items()
    }
