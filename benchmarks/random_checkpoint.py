"""A random INT4 checkpoint of the 6B model's shape, written shard by shard; float weights never exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.model.config import ChatGLMConfig

SIZES = {
    "6b": {"hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "inner_hidden_size": 8192, "num_layers": 16, "num_attention_heads": 16},
    "mid": {"hidden_size": 1024, "inner_hidden_size": 4096, "num_layers": 8, "num_attention_heads": 16},
}
_DEVIATION = 0.02
_FOUR_BIT_DEVIATION = 4.61  # of -8..7, each equally likely


def write_random_checkpoint(folder: Path, size: str, *, quantised_embeddings: bool) -> int:
    """Write a folder that ``ptuning.load_model`` reads (no tokenizer).

    Without quantised embeddings it is laid out as the published INT4 file: ``.bin``, and ``lm_head.weight`` and
    ``word_embeddings.weight`` are one float16 storage under two names.

    Args:
        folder: is made.
        size: a key of ``SIZES``.
        quantised_embeddings: whether embedding and head are INT4, too.

    Returns:
        bytes of the weight files.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        **SIZES[size], "quantization_bit": 4, "quantization_embeddings": quantised_embeddings, "torch_dtype": "float16",
    }
    config = ChatGLMConfig(**values)
    described = config.to_dict() | {"torch_dtype": "float16", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    parts = [_ends(config, quantised_embeddings)]
    parts += [_layer(config, index) for index in range(config.num_layers)]
    weight_map, total = {}, 0
    for number, part in enumerate(parts, 1):
        name = f"pytorch_model-{number:05}-of-{len(parts):05}.bin"
        state = dict(part)
        torch.save(state, folder / name)
        weight_map.update(dict.fromkeys(state, name))
        total += (folder / name).stat().st_size
        del state
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _ends(config: ChatGLMConfig, quantised: bool) -> Iterator[tuple[str, Tensor]]:
    hidden = config.hidden_size
    if quantised:
        yield from _packed("transformer.word_embeddings", config.vocab_size, hidden)
        yield from _packed("lm_head", config.vocab_size, hidden)
    else:
        shared = torch.empty(config.vocab_size, hidden, dtype=torch.float16)
        for part in shared.split(8192):
            part.copy_(torch.randn(part.shape) * _DEVIATION)
        yield "transformer.word_embeddings.weight", shared
        yield "lm_head.weight", shared
    yield from _norm("transformer.final_layernorm", hidden)


def _layer(config: ChatGLMConfig, index: int) -> Iterator[tuple[str, Tensor]]:
    hidden, inner, name = config.hidden_size, config.inner_hidden_size, f"transformer.layers.{index}"
    yield from _norm(f"{name}.input_layernorm", hidden)
    yield from _norm(f"{name}.post_attention_layernorm", hidden)
    shapes = {
        "attention.query_key_value": (3 * hidden, hidden), "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden), "mlp.dense_4h_to_h": (hidden, inner),
    }
    for leaf, (rows, columns) in shapes.items():
        yield from _packed(f"{name}.{leaf}", rows, columns)
        yield f"{name}.{leaf}.bias", torch.zeros(rows, dtype=torch.float16)


def _packed(name: str, rows: int, columns: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8)
    yield f"{name}.weight_scale", torch.full((rows,), _DEVIATION / _FOUR_BIT_DEVIATION, dtype=torch.float16)


def _norm(name: str, hidden: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.ones(hidden, dtype=torch.float16)
    yield f"{name}.bias", torch.zeros(hidden, dtype=torch.float16)
