"""Prefix checkpoints: our folder form, the published ``pytorch_model.bin``, and PEFT's adapter folder.

Our form is ``prefix_encoder.safetensors`` (published key names, float32) beside ``prefix_config.json`` with all that is
needed to chat with it: nobody repeats pre_seq_len by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.checkpoint.file_list import ListedFile, check_read, read_file_list
from ptuning.checkpoint.mapped_tensors import MappedTensors
from ptuning.checkpoint.peft_adapter import CONFIG_FILE as ADAPTER_FILE
from ptuning.checkpoint.peft_adapter import is_adapter, read_adapter
from ptuning.checkpoint.prefix_tensors import PREFIX_KEY, PrefixShape, read_shape, refuse_not_finite, refuse_not_float
from ptuning.checkpoint.weight_files import find_weights, open_tensors, parse_json_file, read_small_file
from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import check_kinds, expanded, is_regular
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

logger = logging.getLogger(__name__)

WEIGHTS_FILE, CONFIG_FILE, PUBLISHED_FILE = "prefix_encoder.safetensors", "prefix_config.json", "pytorch_model.bin"
_WHOLE_MODEL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_SETTINGS_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,), "pre_seq_len": (int,), "prefix_projection": (bool,), "num_layers": (int,),
    "num_attention_heads": (int,), "hidden_size": (int,), "base_model": (str,), "base_fingerprint": (str,),
    "quantization_bit": (int,), "source_prefix": (str,), "history": (bool,), "legacy_first_round": (bool,),
    "max_source_length": (int,), "max_target_length": (int,),
}  # fmt: skip


@dataclass(frozen=True)
class PrefixCheckpoint:
    """A prefix as it stands on disk.

    Attributes:
        stored: where each tensor lies, by the encoder's own names (``embedding.weight``, ``trans.0.weight``, …): the open
            file, and the tensor's name in it.
        shape: read off the tensors.
        path: the file they came from.
        settings: what ``prefix_config.json`` says besides (base model, fingerprint, prompt settings); may be empty.
    """

    stored: Mapping[str, tuple[MappedTensors, str]]
    shape: PrefixShape
    path: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The tensors under the encoder's own names, float32, copied out of their files."""
        state = {}
        for name, (file, its_name) in self.stored.items():
            state[name] = file.tensor(its_name).to(torch.float32, copy=True)
            file.forget(its_name)
        return state

    @property
    def pre_seq_len(self) -> int:
        """P, the number of prefix slots."""
        return self.shape.pre_seq_len

    @property
    def projection(self) -> bool:
        """Whether the two-layer projection is there."""
        return self.shape.projection

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """Keywords of :func:`ptuning.data.truncation.prompt_ids` that the prefix was trained with."""
        return {
            "source_prefix": self.settings.get("source_prefix") or "",
            "legacy": bool(self.settings.get("history")) and bool(self.settings.get("legacy_first_round")),
        }

    def encoder(self, model_config: Any) -> PrefixEncoder:
        """The prefix encoder for a backbone; arguments and errors as for :meth:`check_model`."""
        self.check_model(model_config)
        encoder = PrefixEncoder(prefix_config_of(model_config, self.pre_seq_len, self.projection))
        encoder.load_state_dict(self.state_dict)
        return encoder

    def check_model(self, model_config: Any) -> None:
        """Refuse a backbone that the prefix does not belong to.

        Args:
            model_config: the backbone's :class:`~ptuning.model.config.ChatGLMConfig`.

        Raises:
            UserError: the prefix belongs to a model of another size or family; both are named.
        """
        self.shape.check_model(model_config, self.path)
        for key in ("num_attention_heads", "num_layers", "hidden_size"):
            stated, its = self.settings.get(key), getattr(model_config, key)
            if stated not in (None, its):
                raise UserError(
                    f"{self.path} was trained for a model with {key} {stated}, this one has {its}: give the base model that "
                    "the prefix was trained on"
                )


def is_prefix_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a prefix checkpoint rather than a whole model (cheap: names, at most one header)."""
    folder = Path(path)
    published = folder / PUBLISHED_FILE
    whole = any(os.path.isfile(folder / name) for name in _WHOLE_MODEL)
    if os.path.isfile(folder / WEIGHTS_FILE) or is_adapter(folder):
        # A whole model may have a prefix lying beside it; then the model is meant.
        return not whole and not _is_backbone(published)
    return not whole and os.path.isfile(published) and not _is_backbone(published)


def _is_backbone(file: Path) -> bool:
    """Whether a published weight file holds anything but a prefix."""
    if not os.path.isfile(file):
        return False
    return any(not name.startswith(PREFIX_KEY) for name in open_tensors(file).stored)


def read_prefix(
    path: str | os.PathLike[str], *, pre_seq_len: int | None = None, prefix_projection: bool | None = None
) -> PrefixCheckpoint:
    """Read a prefix checkpoint in any of its forms; its shape comes from the tensors.

    Args:
        path: the checkpoint folder (or the weight file in it).
        pre_seq_len: what a flag says, to be held against the file; None asks nothing. Likewise ``prefix_projection``.

    Raises:
        UserError: no such checkpoint, no prefix in it, a file that differs from the list beside it (see
            :mod:`ptuning.checkpoint.file_list`), or a flag that contradicts the file.
    """
    folder = expanded(path)
    if not os.path.exists(folder):
        raise UserError(f"prefix checkpoint not found: {path} (working directory {working_directory()})")
    if os.path.isdir(folder) and is_regular(folder / ADAPTER_FILE) and not is_regular(folder / WEIGHTS_FILE):
        file, names, settings = read_adapter(folder)
        stored = {name: (file, its_name) for name, its_name in names.items()}
    else:
        parts = _prefix_files(folder)
        file = parts[0]
        listed = read_file_list(file.path.parent) or {}
        stored = {}
        for part in parts:
            check_read(part.path, listed.get(part.path.name), part.length, part.sha256)
            stored |= {name.removeprefix(PREFIX_KEY): (part, name) for name in part.stored if name.startswith(PREFIX_KEY)}
        settings = _read_settings(file.path.with_name(CONFIG_FILE), listed) if file.path.name == WEIGHTS_FILE else {}
    checkpoint = PrefixCheckpoint(stored, _checked_shape(stored, file.path), file.path, settings)
    _hold_against_settings(checkpoint, file.path.with_name(CONFIG_FILE))
    _hold_against_flags(checkpoint, pre_seq_len, prefix_projection)
    return checkpoint


def _checked_shape(stored: Mapping[str, tuple[MappedTensors, str]], where: Path) -> PrefixShape:
    """The shape of a prefix whose tensors are ordinary, finite numbers."""
    for file, name in stored.values():
        refuse_not_float({name: file.stored[name].dtype}, file.path)
    shape = read_shape({name: file.stored[its_name].shape for name, (file, its_name) in stored.items()}, where)
    refuse_not_finite({name: file.tensor(its_name).to(torch.float32) for name, (file, its_name) in stored.items()}, where)
    for file, name in stored.values():
        file.forget(name)
    return shape


def _read_settings(path: Path, listed: Mapping[str, ListedFile]) -> dict[str, Any]:
    """What ``prefix_config.json`` says; nothing where there is none.

    Settings may be changed by hand (a base model that moved), so that is no error; but it does not go unsaid.

    Raises:
        UserError: it is damaged, or a setting is of the wrong type.
    """
    if not is_regular(path):
        return {}
    data = read_small_file(path)
    settings = parse_json_file(path, data)
    check_kinds(settings, _SETTINGS_KINDS, path)
    try:
        check_read(path, listed.get(path.name), len(data), lambda: hashlib.sha256(data).hexdigest())
    except UserError as error:
        logger.warning("%s", error)
    return settings


def _prefix_files(folder: Path) -> tuple[MappedTensors, ...]:
    """The weight files that may hold the prefix, opened: the one in our form, or those of a published checkpoint.

    Raises:
        UserError: there are none, or they are damaged.
    """
    # A published prefix before a model.safetensors: this is where the published trainer puts one.
    for file in (folder / WEIGHTS_FILE if os.path.isdir(folder) else folder, folder / PUBLISHED_FILE):
        if is_regular(file):
            return (open_tensors(file),)
    files = find_weights(folder)
    if files is not None:
        return files.parts
    inside = [entry for entry in folder.glob("checkpoint-*") if entry.name.removeprefix("checkpoint-").isdigit()]
    last = max(inside, key=lambda entry: int(entry.name.removeprefix("checkpoint-")), default=None)
    hint = f"; did you mean {last}?" if last is not None else ""
    raise UserError(f"{folder} holds no prefix ({WEIGHTS_FILE}, {PUBLISHED_FILE} or a PEFT adapter){hint}")


def _hold_against_settings(checkpoint: PrefixCheckpoint, where: Path) -> None:
    """Files of two runs in one folder, or a save that was cut between them, must not pass for a checkpoint."""
    stated = checkpoint.settings
    found = {"pre_seq_len": checkpoint.pre_seq_len, "prefix_projection": checkpoint.projection}
    wrong = [f"{key} {stated[key]} there, {found[key]} here" for key in found if stated.get(key, found[key]) != found[key]]
    if wrong:
        raise UserError(
            f"{where} and {checkpoint.path.name} are of different runs ({'; '.join(wrong)}): copy both files from one "
            "checkpoint"
        )


def _hold_against_flags(checkpoint: PrefixCheckpoint, pre_seq_len: int | None, projection: bool | None) -> None:
    if pre_seq_len is not None and pre_seq_len != checkpoint.pre_seq_len:
        raise UserError(
            f"{checkpoint.path} has pre_seq_len={checkpoint.pre_seq_len}, you passed {pre_seq_len}: leave --pre_seq_len "
            "out, it is read off the file"
        )
    if projection is not None and bool(projection) != checkpoint.projection:
        raise UserError(
            f"{checkpoint.path} has {'a' if checkpoint.projection else 'no'} projection, you passed prefix_projection="
            f"{projection}: leave the flag out, it is read off the file"
        )


def save_prefix(
    folder: str | os.PathLike[str], encoder: PrefixEncoder, settings: Mapping[str, Any] | None = None
) -> Path:
    """Write a prefix in our folder form; the files appear whole or not at all.

    Args:
        folder: made where missing.
        encoder: the prefix encoder.
        settings: base model, fingerprint, prompt settings; must go into JSON.

    Returns:
        the weight file.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    config = encoder.config
    values = {
        "format": "ptuning-prefix-1",
        "pre_seq_len": config.pre_seq_len,
        "prefix_projection": config.projection,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_size": config.hidden_size,
        **(settings or {}),
    }
    # Both are written before either is renamed.
    with replace_when_whole(target / CONFIG_FILE) as described, replace_when_whole(target / WEIGHTS_FILE) as written:
        save_file(published_state(encoder), written, metadata={"format": "pt"})
        described.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return target / WEIGHTS_FILE


def save_published_prefix(folder: str | os.PathLike[str], encoder: PrefixEncoder) -> Path:
    """Write ``pytorch_model.bin`` as the published trainer does, for the published loader: same keys, float32."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with replace_when_whole(target / PUBLISHED_FILE) as temporary:
        torch.save(published_state(encoder), temporary)
    return target / PUBLISHED_FILE


def published_state(encoder: PrefixEncoder) -> dict[str, Tensor]:
    """The encoder's tensors under their published names, float32 on the CPU."""
    return {
        f"{PREFIX_KEY}{name}": tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in encoder.state_dict().items()
    }
