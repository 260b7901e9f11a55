"""PEFT's prefix-tuning adapter folder: the same numbers as ours under other names.

``adapter_model.safetensors`` holds ``prompt_embeddings`` [P, 2LD], laid out as the published prefix embedding without
projection; a projection is multiplied out when an adapter is written, as PEFT itself does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ptuning.checkpoint.mapped_tensors import MappedTensors
from ptuning.checkpoint.prefix_tensors import refuse_not_float
from ptuning.checkpoint.weight_files import open_tensors, read_json
from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.reading import check_kinds, is_regular, listed, shortened
from ptuning.model.prefix_encoder import PrefixEncoder

CONFIG_FILE = "adapter_config.json"
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_TENSOR = "prompt_embeddings"
_SETTINGS = {
    "base_model_name_or_path": "base_model",
    "num_attention_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "token_dim": "hidden_size",
}
_KINDS: dict[str, tuple[type, ...]] = {
    "base_model_name_or_path": (str,), "num_attention_heads": (int,), "num_layers": (int,), "token_dim": (int,),
    "num_transformer_submodules": (int,), "num_virtual_tokens": (int,),
}  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter of any kind."""
    return os.path.isfile(folder / CONFIG_FILE)


def read_adapter(folder: Path) -> tuple[MappedTensors, dict[str, str], dict[str, Any]]:
    """Read a PEFT prefix-tuning adapter.

    Returns:
        the weight file; the names of its tensors by the prefix encoder's own; what the adapter says about its base model,
        under the names of ``prefix_config.json``.

    Raises:
        UserError: another kind of adapter, or files that are missing or damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    kind = config.get("peft_type")
    if kind != "PREFIX_TUNING":
        raise UserError(
            f"{folder / CONFIG_FILE} has peft_type {shortened(repr(kind), 60)}; only PREFIX_TUNING adapters hold a "
            "P-Tuning v2 prefix"
        )
    check_kinds(config, _KINDS, folder / CONFIG_FILE)
    file = next((folder / name for name in _WEIGHT_FILES if is_regular(folder / name)), None)
    if file is None:
        raise UserError(f"{folder} holds {CONFIG_FILE} but neither {' nor '.join(_WEIGHT_FILES)}; copy the whole folder")
    opened = open_tensors(file)
    rows = opened.stored.get(_TENSOR)
    if rows is None or len(rows.shape) != 2:
        names = listed(sorted(opened.stored)) or "nothing"
        raise UserError(f"{file} holds {names}; {_TENSOR} [P, 2*layers*hidden] is needed")
    length = rows.shape[0]
    submodules = config.get("num_transformer_submodules") or 1
    if submodules != 1 or config.get("num_virtual_tokens", length) != length:
        raise UserError(
            f"{folder / CONFIG_FILE} states num_virtual_tokens {config.get('num_virtual_tokens')} in {submodules} part(s), "
            f"{file.name} holds {length}: a prefix of ChatGLM-6B has one part, and both files must be of one run"
        )
    refuse_not_float({_TENSOR: rows.dtype}, file)
    settings = {ours: config[theirs] for theirs, ours in _SETTINGS.items() if config.get(theirs) is not None}
    return opened, {"embedding.weight": _TENSOR}, settings


def save_adapter(folder: str | os.PathLike[str], encoder: PrefixEncoder, base_model: str | None = None) -> Path:
    """Write a prefix as a PEFT prefix-tuning adapter.

    Args:
        folder: made where missing.
        encoder: the prefix encoder; a projection is multiplied out.
        base_model: what PEFT shall load as the base model.

    Returns:
        the weight file.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    shape = encoder.config
    with torch.no_grad():
        rows = encoder.trans(encoder.embedding.weight) if shape.projection else encoder.embedding.weight
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": shape.pre_seq_len,
        "token_dim": shape.hidden_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": shape.num_attention_heads,
        "num_layers": shape.num_layers,
        "encoder_hidden_size": shape.hidden_size,
        "prefix_projection": False,
    }
    with replace_when_whole(target / CONFIG_FILE) as described, replace_when_whole(target / _WEIGHT_FILES[0]) as written:
        save_file({_TENSOR: rows.detach().to("cpu", torch.float32).contiguous()}, written, metadata={"format": "pt"})
        described.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return target / _WEIGHT_FILES[0]
