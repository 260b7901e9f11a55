"""PEFT's prefix-tuning adapter folder: the same numbers as ours under other names.

``adapter_model.safetensors`` holds ``prompt_embeddings`` [P, 2LD], laid out as the published prefix embedding without
projection; a projection is multiplied out when an adapter is written, as PEFT itself does.
"""

from __future__ import annotations

from typing import Any

import torch

from ptuning.core.errors import UserError
from ptuning.core.reading import check_kinds, listed, shortened
from ptuning.methods.method import AdapterFiles, CheckpointFiles
from ptuning.methods.prefix_tensors import PrefixTensors, refuse_not_float
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


def read_peft_prefix(files: CheckpointFiles) -> tuple[str, PrefixTensors, dict[str, Any]]:
    """Read a PEFT prefix-tuning adapter.

    Returns:
        the weight file's name; its tensors; what the adapter says about its base model, under the names of
        ``prefix_config.json``.

    Raises:
        UserError: another kind of adapter, or files that are missing or damaged.
    """
    folder, config = files.folder, files.json(CONFIG_FILE)
    kind = config.get("peft_type")
    if kind != "PREFIX_TUNING":
        raise UserError(
            f"{folder / CONFIG_FILE} has peft_type {shortened(repr(kind), 60)}; only PREFIX_TUNING adapters hold a "
            "P-Tuning v2 prefix"
        )
    check_kinds(config, _KINDS, folder / CONFIG_FILE)
    name = next((name for name in _WEIGHT_FILES if files.has(name)), None)
    if name is None:
        raise UserError(f"{folder} holds {CONFIG_FILE} but neither {' nor '.join(_WEIGHT_FILES)}; copy the whole folder")
    file, tensors = folder / name, files.tensors(name)
    rows = tensors.get(_TENSOR)
    if rows is None or rows.dim() != 2:
        raise UserError(f"{file} holds {listed(sorted(tensors)) or 'nothing'}; {_TENSOR} [P, 2*layers*hidden] is needed")
    length = len(rows)
    submodules = config.get("num_transformer_submodules") or 1
    if submodules != 1 or config.get("num_virtual_tokens", length) != length:
        raise UserError(
            f"{folder / CONFIG_FILE} states num_virtual_tokens {config.get('num_virtual_tokens')} in {submodules} part(s), "
            f"{name} holds {length}: a prefix of ChatGLM-6B has one part, and both files must be of one run"
        )
    refuse_not_float({_TENSOR: rows.dtype}, file)
    settings = {ours: config[theirs] for theirs, ours in _SETTINGS.items() if config.get(theirs) is not None}
    return name, PrefixTensors([tensors], {_TENSOR: "embedding.weight"}), settings


def peft_files(encoder: PrefixEncoder, base_model: str | None = None) -> AdapterFiles:
    """The files of a prefix as a PEFT prefix-tuning adapter.

    Args:
        encoder: the prefix encoder; a projection is multiplied out.
        base_model: what PEFT shall load as the base model.
    """
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
    tensors = {_TENSOR: rows.detach().to("cpu", torch.float32).contiguous()}
    return AdapterFiles({_WEIGHT_FILES[0]: tensors}, {CONFIG_FILE: config})
