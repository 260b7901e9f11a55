"""The layers of the backbone, and the one loop over them.

Legend: B batch, T tokens, L layers, D hidden, n tokens of a packed batch, w those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ptuning.model.attention import SelfAttention
from ptuning.model.attention_context import AttentionContext
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families.family import Family
from ptuning.model.linear import LinearFactory


class MLP(nn.Module):
    """Linear, the family's activation, Linear."""

    def __init__(self, config: ChatGLMConfig, family: Family, linear: LinearFactory) -> None:
        super().__init__()
        self.activation = family.activation
        self.dense_h_to_4h = linear(config.hidden_size, config.inner_hidden_size, bias=True)
        self.dense_4h_to_h = linear(config.inner_hidden_size, config.hidden_size, bias=True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        projected: Tensor = self.dense_4h_to_h(self.activation(self.dense_h_to_4h(hidden_states)))
        return projected


class Block(nn.Module):
    """One layer: attention and MLP, each with a norm before and a residual around it; which, the family says.

    Args:
        config: sizes.
        family: of the model.
        layer_index: place of the layer in cache and prefix.
        linear: class of its linears.
    """

    def __init__(self, config: ChatGLMConfig, family: Family, layer_index: int, linear: LinearFactory) -> None:
        super().__init__()
        self.alpha = family.residual_scale(config)
        self.residual_post_layernorm = family.residual_post_layernorm
        self.input_layernorm = family.norm(config)
        self.attention = SelfAttention(config.hidden_size, family.heads(config), layer_index, linear)
        self.post_attention_layernorm = family.norm(config)
        self.mlp = MLP(config, family, linear)

    def forward(self, hidden_states: Tensor, context: AttentionContext) -> Tensor:
        """[B, T, D] to the same; with a packing [n, D] to [n, D] or [w, D]."""
        normed = self.input_layernorm(hidden_states)
        attended = self.attention(normed, context)
        residual = normed if self.residual_post_layernorm else hidden_states
        if context.packing is not None:
            residual = context.packing.select(residual)
        hidden_states = torch.add(attended, residual, alpha=self.alpha)
        normed = self.post_attention_layernorm(hidden_states)
        residual = normed if self.residual_post_layernorm else hidden_states
        return torch.add(self.mlp(normed), residual, alpha=self.alpha)


def run_layers(
    layers: Iterable[nn.Module], hidden_states: Tensor, context: AttentionContext, outputs: list[Tensor] | None = None
) -> Tensor:
    """Hidden states through layers, one after the other: the loop of training, decoding and calibration.

    Args:
        layers: some or all blocks of a backbone, in order.
        hidden_states: [B, T, D]; with a packing [n, D].
        context: of this pass; the last of the layers leaves out the tokens that its packing does not keep.
        outputs: takes every layer's output, where it is asked for.

    Returns:
        [B, T, D]; with a packing [n, D], or [w, D] where it keeps some tokens only.
    """
    blocks = list(layers)
    inner = context.keeping_all_tokens()
    for block in blocks:
        hidden_states = block(hidden_states, context if block is blocks[-1] else inner)
        if outputs is not None:
            outputs.append(hidden_states)
    return hidden_states
