"""What the answers of an evaluation depend on: when one of these changes, answers that are there cannot be continued."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.core.version import __version__
from ptuning.data.rows import Row
from ptuning.engine.generation import PRESETS
from ptuning.methods.registry import active_method
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.arguments import DataArguments


@torch.no_grad()
def run_fingerprint(
    model: ChatGLMNetwork,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    data: DataArguments,
    *,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Settings, rows, prompts (ids), weights and tuned part of an evaluation by name, for JSON.

    Paths are left out, contents count: a folder may move. The seed matters to sampling only, the
    batch size to sampled beams only.
    """
    fingerprint: dict[str, Any] = {
        "generation": data.generation,
        "num_beams": data.num_beams or 1,
        "max_source_length": data.max_source_length,
        "val_max_target_length": data.val_max_target_length or data.max_target_length,
        "source_prefix": data.source_prefix,
        "legacy_first_round": data.legacy_first_round,
        "truncation": data.truncation,
    }
    if not PRESETS[data.generation].sampling.greedy:
        fingerprint["seed"] = seed
        if fingerprint["num_beams"] > 1:
            fingerprint["per_device_eval_batch_size"] = batch_size
    method = active_method(model)
    return fingerprint | {
        "rows": len(rows),
        "row_texts": _digest([[row.prompt, row.response, row.history] for row in rows]),
        "prompts": _digest(list(map(list, prompts))),
        "model": _weights_digest(model),
        "prefix": "none" if method is None else _tensors_digest(method.state(model)),
        "quantization_bit": model.config.quantization_bit or 0,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "versions": {"ptuning": __version__, "torch": importlib.metadata.version("torch")},
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _weights_digest(model: ChatGLMNetwork) -> str:
    """Of the layer norms, and of one linear in the first and the last block: two ways to quantise the same weights share
    the norms. Read through ``state_dict``, which gives quantised weights in their published form."""
    digest = hashlib.sha256((model.base_fingerprint or "").encode())
    for layer in (model.transformer.layers[0], model.transformer.layers[-1]):
        digest.update(_tensors_digest(layer.attention.dense.state_dict()).encode())  # type: ignore[union-attr, arg-type]
    return digest.hexdigest()[:16]


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + _bytes(tensor))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes()
