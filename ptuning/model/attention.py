"""Attention of one GLM block: fused projection, attention by the pass's backend, output projection.

Legend: B batch, T new tokens, S tokens seen (cached and new), P prefix slots, N heads, H head size, D hidden, n tokens of a
packed batch, w those that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptuning.model.attention_context import AttentionContext, KeyValueCache
from ptuning.model.heads import HeadLayout
from ptuning.model.linear import LinearFactory


class DenseAttention:
    """Attention over all keys at once, by torch; see :class:`~ptuning.model.attention_context.AttentionBackend`.

    Args:
        cache: receives the new keys and values and gives back all of them; None keeps nothing.
    """

    def __init__(self, cache: KeyValueCache | None = None) -> None:
        self.cache = cache

    def attend(self, fused: Tensor, context: AttentionContext, layer: int) -> Tensor:
        """[B, T, 3NH] to [B, T, NH]."""
        query, key, value = context.heads.split(fused, context.rotary)
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer)
        if context.prefix is not None:
            prefix_key, prefix_value = context.prefix[layer]
            batch = key.shape[0]
            key = torch.cat((prefix_key.to(key.dtype).expand(batch, -1, -1, -1), key), dim=2)
            value = torch.cat((prefix_value.to(value.dtype).expand(batch, -1, -1, -1), value), dim=2)
        allowed, blind = context.mask
        if blind is not None:
            query = query.masked_fill(blind, 0.0)
        # scaled_dot_product_attention accumulates scores and softmax in float32 for half-precision inputs, so the
        # published trick of dividing by layer_index + 1 is not needed.
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head attention with the published parameter names ``query_key_value`` and ``dense``.

    Args:
        hidden_size: D.
        heads: how the heads lie in the fused projection.
        layer_index: place of the layer in cache and prefix.
        linear: class of the linears; called as ``linear(in_features, out_features, bias=True)``.
    """

    def __init__(self, hidden_size: int, heads: HeadLayout, layer_index: int, linear: LinearFactory) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.query_key_value = linear(hidden_size, heads.width, bias=True)
        self.dense = linear(hidden_size, hidden_size, bias=True)

    def forward(self, hidden_states: Tensor, context: AttentionContext) -> Tensor:
        """Attend.

        Args:
            hidden_states: [B, T, D], normalised; with a packing [n, D].
            context: of this pass.

        Returns:
            [B, T, D]; with a packing [n, D], or [w, D] where it keeps some tokens only.
        """
        packing = context.packing
        fused = self.query_key_value(hidden_states)
        if packing is not None:
            fused = packing.pad(fused)
        mixed = context.backend.attend(fused, context, self.layer_index)
        if packing is not None:
            mixed = packing.unpad(mixed)
        attended: Tensor = self.dense(mixed)
        return attended
