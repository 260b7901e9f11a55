"""The prefix encoder of P-Tuning v2: the only trained part.

Legend: P prefix slots, L layers, N heads, H head size, D hidden.

Source: "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks" (Liu et al. 2022)
and the published ChatGLM-6B checkpoints, whose parameter names and layout are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptuning.model.config import ChatGLMConfig
from ptuning.model.families import family_of

PrefixKeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Per layer a key and a value, each [1 or B, N, P, H]."""


@dataclass(frozen=True)
class PrefixConfig:
    """Shape of a prefix.

    Attributes:
        pre_seq_len: P, number of prefix slots.
        projection: whether a two-layer projection stands between the embedding and the keys and values.
        num_layers: L of the backbone.
        num_attention_heads: N of the backbone, its key-value heads.
        hidden_size: NH, which is D of the backbone.
        dropout: share of the keys and values dropped while training.
    """

    pre_seq_len: int
    projection: bool
    num_layers: int
    num_attention_heads: int
    hidden_size: int
    dropout: float = 0.1


class PrefixEncoder(nn.Module):
    """Trainable past keys and values of every layer, from P learned rows.

    Kept in float32 whatever the backbone's dtype: ``model.half()`` or ``model.to(torch.bfloat16)`` leave it alone.

    Parameters (published names): ``embedding.weight`` [P, 2LD], or with projection ``embedding.weight`` [P, D],
    ``trans.0`` [D, D], ``trans.2`` [2LD, D].
    """

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__()
        self.config = config
        self.fresh = True  # neither trained nor loaded yet: nothing may be generated with it
        width = 2 * config.num_layers * config.hidden_size
        if config.projection:
            self.embedding = nn.Embedding(config.pre_seq_len, config.hidden_size)
            self.trans = nn.Sequential(
                nn.Linear(config.hidden_size, config.hidden_size), nn.Tanh(), nn.Linear(config.hidden_size, width)
            )
        else:
            self.embedding = nn.Embedding(config.pre_seq_len, width)
        self.float()  # also where torch's default dtype is a half-precision one

    def forward(self, dtype: torch.dtype) -> PrefixKeyValues:
        """The keys and values of the prefix, one shared row.

        While training, one dropout mask serves the whole batch, as one prefix does: a mask per row would cost a copy of
        the prefix per row. At batch 1 that is exactly the published behaviour.

        Args:
            dtype: of the result; the sums are made in float32.

        Returns:
            L pairs of key and value, each [1, N, P, H].
        """
        config = self.config
        if self.training:
            self.fresh = False
        rows = self.embedding.weight
        if config.projection:
            with torch.autocast(rows.device.type, enabled=False):
                rows = self.trans(rows)
        states = F.dropout(rows, config.dropout, self.training).to(dtype)
        head_dim = config.hidden_size // config.num_attention_heads
        layout = states.view(config.pre_seq_len, 2 * config.num_layers, config.num_attention_heads, head_dim)
        # 2L times [1, N, P, H]; 2i and 2i+1 are key and value of layer i. Unbound in one step: backward of a single index
        # would make a tensor of the whole prefix for each of them.
        pairs = layout.permute(1, 2, 0, 3)[:, None].unbind(0)
        return tuple((pairs[2 * i], pairs[2 * i + 1]) for i in range(config.num_layers))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """As usual, by whatever loader; where every tensor is there, the prefix counts as loaded."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(f"{prefix}{name}" in state_dict for name, _ in self.named_parameters()):
            self.fresh = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow moves between devices, but stay in float32."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype != torch.float32 else moved

        return super()._apply(keep_float32, recurse)

    def extra_repr(self) -> str:
        """Shape of the prefix, for ``print(model)``."""
        return f"pre_seq_len={self.config.pre_seq_len}, projection={self.config.projection}"


def prefix_config_of(model_config: ChatGLMConfig, pre_seq_len: int, projection: bool, dropout: float = 0.1) -> PrefixConfig:
    """The shape of a prefix for one backbone.

    Args:
        model_config: of the backbone.
        pre_seq_len: P.
        projection: with or without projection.
        dropout: share dropped while training.
    """
    heads = family_of(model_config).heads(model_config)
    return PrefixConfig(
        pre_seq_len=pre_seq_len,
        projection=projection,
        num_layers=model_config.num_layers,
        num_attention_heads=heads.num_key_value_heads,
        hidden_size=heads.num_key_value_heads * heads.head_dim,
        dropout=dropout,
    )
