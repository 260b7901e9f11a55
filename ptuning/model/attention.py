"""Attention of one GLM block: fused QKV, rotary positions, an optional prefix, an optional cache.

Legend: B batch, T new tokens, S tokens seen (cache and new), P prefix slots, N heads, H head size, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from ptuning.model.rotary import apply_rotary

LinearFactory = Callable[..., nn.Module]


class Visibility(NamedTuple):
    """Which columns every row may look at.

    Attributes:
        allowed: bool [B, 1, T, P+S], True where row t sees the column; None when every row sees everything.
        blind: bool [B, 1, T, 1], True for rows that see nothing; None when there are none. The published code gives all
            columns of such a row the same score, so it averages over all of them; so do we, and no NaN arises.
    """

    allowed: Tensor | None = None
    blind: Tensor | None = None


class Packing(NamedTuple):
    """Where the tokens that are computed stand in a padded batch. Between attention they lie one behind the other, so that
    linears and layer norms do no work for padding.

    Attributes:
        batch: B.
        tokens: T.
        places: [n] of the tokens among the B*T, rising; None when all are computed.
        kept: [w] among the n, those whose output is asked for; None when all are. The last layer ends with these alone.
    """

    batch: int
    tokens: int
    places: Tensor | None
    kept: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """[n, C] to [B*T, C], zeros at padding."""
        if self.places is None:
            return values
        # index_copy would keep the values for backward.
        return values.new_zeros(self.batch * self.tokens, values.shape[1]).index_put((self.places,), values)

    def gather(self, values: Tensor) -> Tensor:
        """[B*T, C] to [n, C], or to [w, C]."""
        if self.places is None:
            return self.narrow(values)
        return values.index_select(0, self.places if self.kept is None else self.places[self.kept])

    def narrow(self, values: Tensor) -> Tensor:
        """[n, C] to [w, C], or as it is."""
        return values if self.kept is None else values.index_select(0, self.kept)


class SelfAttention(nn.Module):
    """Multi-head attention with the published parameter names ``query_key_value`` and ``dense``.

    Args:
        hidden_size: D.
        num_attention_heads: N.
        layer_index: place of the layer in the cache.
        linear: class of the linears; called as ``linear(in_features, out_features, bias=True)``.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int, layer_index: int, linear: LinearFactory) -> None:
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.layer_index = layer_index
        self.query_key_value = linear(hidden_size, 3 * hidden_size, bias=True)
        self.dense = linear(hidden_size, hidden_size, bias=True)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        cache: Cache | None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            hidden_states: [B, T, D], normalised; with a packing [n, D].
            rotary: cos and sin, each [B, 1, T, H].
            visibility: over P+S columns, the prefix first.
            prefix_key: [1 or B, N, P, H] or None; not rotated, takes no position. Likewise ``prefix_value``.
            cache: receives the new keys and values and gives back all of them; None keeps nothing. One that can
                ``attend`` (the generation engine's, which knows every row's prefix) does the attention itself; where it can
                ``attend_fused``, the rotation, too.
            packing: where the tokens stand, if they are packed.

        Returns:
            [B, T, D]; with a packing [n, D], or [w, D] where it asks for some tokens only.
        """
        fused = self.query_key_value(hidden_states)
        if packing is None:
            batch, tokens, hidden = hidden_states.shape
        else:
            (batch, tokens), hidden = packing[:2], hidden_states.shape[-1]
            fused = packing.spread(fused)
        attend_fused = getattr(cache, "attend_fused", None)
        attended: Tensor | None = None if attend_fused is None else attend_fused(fused, rotary, self.layer_index)
        if attended is not None:
            return self.dense(attended.reshape(batch, tokens, hidden))
        # Interleaved per head: [.., N, 3H], not three blocks of D.
        fused = fused.view(batch, tokens, self.num_attention_heads, 3, -1).permute(3, 0, 2, 1, 4)  # [3, B, N, T, H]
        query, key = apply_rotary(fused[:2], *rotary)
        mixed = self._attend(query, key, fused[2], visibility, prefix_key, prefix_value, cache).transpose(1, 2)
        if packing is None:
            return self.dense(mixed.reshape(batch, tokens, hidden))
        return self.dense(packing.gather(mixed.reshape(batch * tokens, hidden)))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visibility: Visibility,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """[B, N, T, H] to the same."""
        attend = getattr(cache, "attend", None)
        if attend is not None:
            mixed: Tensor = attend(query, key, value, self.layer_index)
            return mixed
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        if prefix_key is not None and prefix_value is not None:
            batch = key.shape[0]
            key = torch.cat((prefix_key.to(key.dtype).expand(batch, -1, -1, -1), key), dim=2)
            value = torch.cat((prefix_value.to(value.dtype).expand(batch, -1, -1, -1), value), dim=2)
        if visibility.blind is not None:
            query = query.masked_fill(visibility.blind, 0.0)
        # scaled_dot_product_attention accumulates scores and softmax in float32 for half-precision inputs, so the
        # published trick of dividing by layer_index + 1 is not needed.
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visibility.allowed)
