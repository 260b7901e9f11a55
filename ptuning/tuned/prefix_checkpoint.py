"""Prefix checkpoints: our folder form, the published ``pytorch_model.bin``, and PEFT's adapter folder.

Our form is ``prefix_encoder.safetensors`` (published key names, float32) beside ``prefix_config.json`` with all that is
needed to chat with it: nobody repeats pre_seq_len by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.blocks.prefix_encoder import PrefixConfig, PrefixEncoder
from ptuning.plain.errors import UserError
from ptuning.tuned.atomic import replace_when_whole
from ptuning.tuned.peft_adapter import is_adapter, read_adapter
from ptuning.tuned.weight_files import check_whole, read_json, read_tensors
from ptuning.tuned.weights import PREFIX_KEY

WEIGHTS_FILE, CONFIG_FILE, PUBLISHED_FILE = "prefix_encoder.safetensors", "prefix_config.json", "pytorch_model.bin"
_FILES = (WEIGHTS_FILE, PUBLISHED_FILE, "model.safetensors")


@dataclass(frozen=True)
class PrefixCheckpoint:
    """A prefix as it stands on disk.

    Attributes:
        state_dict: tensors under the encoder's own names (``embedding.weight``, ``trans.0.weight``, …), float32.
        pre_seq_len: P, read off the tensors.
        projection: read off the tensors.
        width: 2·L·D, the size of one prefix row over all layers.
        path: the file they came from.
        settings: what ``prefix_config.json`` says besides (base model, fingerprint, prompt settings); may be empty.
    """

    state_dict: dict[str, Tensor]
    pre_seq_len: int
    projection: bool
    width: int
    path: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def encoder(self, model_config: Any) -> PrefixEncoder:
        """The prefix encoder for a backbone.

        Args:
            model_config: the backbone's :class:`~ptuning.blocks.config.ChatGLMConfig`.

        Raises:
            UserError: the prefix belongs to a model of another size or family; both are named.
        """
        wanted = 2 * model_config.num_layers * model_config.hidden_size
        embedded = self.state_dict["embedding.weight"].shape[1]
        if self.width != wanted or (self.projection and embedded != model_config.hidden_size):
            raise UserError(
                f"{self.path} holds a prefix of {self.width} numbers a slot{_family(self.width)}; this model has "
                f"{model_config.num_layers} layers of hidden size {model_config.hidden_size} and needs {wanted}"
                f"{_family(wanted)}: give the base model that the prefix was trained on"
            )
        stated = self.settings.get("num_attention_heads", model_config.num_attention_heads)
        if stated != model_config.num_attention_heads:
            raise UserError(
                f"{self.path} was trained for {stated} attention heads, this model has {model_config.num_attention_heads}"
            )
        config = PrefixConfig(
            self.pre_seq_len,
            self.projection,
            model_config.num_layers,
            model_config.num_attention_heads,
            model_config.hidden_size,
        )
        encoder = PrefixEncoder(config)
        encoder.load_state_dict(self.state_dict)
        return encoder


def _family(width: int) -> str:
    """What a prefix width tells about the model family, in brackets."""
    known = {2 * 28 * 4096: "ChatGLM-6B", 28 * 2 * 2 * 128: "ChatGLM2-6B or ChatGLM3-6B"}
    return f" ({known[width]})" if width in known else ""


def is_prefix_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a prefix checkpoint rather than a whole model (cheap: names only, then one header)."""
    folder = Path(path)
    if (folder / WEIGHTS_FILE).is_file() or is_adapter(folder):
        return True
    published = folder / PUBLISHED_FILE
    if not published.is_file() or (folder / f"{PUBLISHED_FILE}.index.json").is_file():
        return False
    check_whole(published)
    names = {name for name, _ in read_tensors(published)}
    return bool(names) and all(name.startswith(PREFIX_KEY) for name in names)


def read_prefix(
    path: str | os.PathLike[str], *, pre_seq_len: int | None = None, prefix_projection: bool | None = None
) -> PrefixCheckpoint:
    """Read a prefix checkpoint in any of its forms; its shape comes from the tensors.

    Args:
        path: the checkpoint folder (or the weight file in it).
        pre_seq_len: what a flag says, to be held against the file; None asks nothing. Likewise ``prefix_projection``.

    Raises:
        UserError: no such checkpoint, no prefix in it, or a flag that contradicts the file.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"prefix checkpoint not found: {path} (working directory {Path.cwd()})")
    file = folder if folder.is_file() else next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if folder.is_dir() and is_adapter(folder):
        file, state = read_adapter(folder)
    elif file is None:
        inside = sorted(entry.name for entry in folder.glob("checkpoint-*") if entry.is_dir())
        hint = f"; did you mean {folder / inside[-1]}?" if inside else ""
        raise UserError(f"{folder} holds no prefix ({WEIGHTS_FILE}, {PUBLISHED_FILE} or a PEFT adapter){hint}")
    else:
        check_whole(file)
        state = {
            name.removeprefix(PREFIX_KEY): tensor.to(torch.float32).clone()
            for name, tensor in read_tensors(file)
            if name.startswith(PREFIX_KEY)
        }
    settings_file = file.parent / CONFIG_FILE
    settings = read_json(settings_file) if settings_file.is_file() else {}
    checkpoint = _describe(state, file, settings)
    _hold_against_flags(checkpoint, pre_seq_len, prefix_projection)
    return checkpoint


def _describe(state: dict[str, Tensor], file: Path, settings: dict[str, Any]) -> PrefixCheckpoint:
    """Read the shape of a prefix off its tensors."""
    plain, projected = {"embedding.weight"}, {"embedding.weight"} | {
        f"trans.{part}.{kind}" for part in (0, 2) for kind in ("weight", "bias")
    }
    if set(state) not in (plain, projected):
        found = ", ".join(sorted(state)) or "none"
        raise UserError(
            f"{file} holds no usable prefix: tensors under {PREFIX_KEY} are {found}; needed is embedding.weight, with "
            "projection also trans.0 and trans.2. A whole model without a prefix goes to --model_name_or_path"
        )
    projection = set(state) == projected
    width = (state["trans.2.weight"].shape[0] if projection else state["embedding.weight"].shape[1])
    return PrefixCheckpoint(state, state["embedding.weight"].shape[0], projection, width, file, settings)


def _hold_against_flags(checkpoint: PrefixCheckpoint, pre_seq_len: int | None, projection: bool | None) -> None:
    if pre_seq_len is not None and pre_seq_len != checkpoint.pre_seq_len:
        raise UserError(
            f"{checkpoint.path} has pre_seq_len={checkpoint.pre_seq_len}, you passed {pre_seq_len}: leave --pre_seq_len "
            "out, it is read off the file"
        )
    if projection and not checkpoint.projection:
        raise UserError(
            f"{checkpoint.path} has no projection, you passed prefix_projection {projection}: leave the flag out, it is "
            "read off the file"
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
    with replace_when_whole(target / WEIGHTS_FILE) as temporary:
        save_file(published_state(encoder), temporary, metadata={"format": "pt"})
    with replace_when_whole(target / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
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
