"""One decode step: a token of every row through the backbone, each row with its own cache and its own prefix.

Legend: A rows, S columns in use, N heads, H head size, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.engine.cache import SlotCache
from ptuning.engine.prefix_attention import PrefixReads, add_prefixes, attend_with_prefixes
from ptuning.kernels import dispatch, native
from ptuning.model.attention import Visibility
from ptuning.model.rotary import rotary_table


class StepCache:
    """Stands where the backbone expects a cache during one decode step.

    Args:
        cache: of all rows.
        columns: [A] where the new token of every row goes.
        longest: S, columns in use with the new ones.
        ragged: whether the rows' lengths differ.
        prefixes: how prefixes are read; None where no row has one.
        first: slot of the first row; the others follow.
    """

    def __init__(
        self, cache: SlotCache, columns: Tensor, longest: int, ragged: bool, prefixes: PrefixReads | None, first: int = 0
    ) -> None:
        self.cache, self.prefixes, self.first = cache, prefixes, first
        self.rows, self.longest = columns.shape[0], longest
        self.bias: Tensor | None = None
        self.lengths = columns + 1 if _has_kernel(cache) else None
        if self.lengths is not None:  # all that the kernel asks for
            return
        self.places = cache.places(columns, first)
        if ragged:
            hidden = torch.arange(longest, device=columns.device) > columns[:, None]
            self.bias = torch.zeros(hidden.shape, dtype=cache.dtype, device=columns.device)
            self.bias = self.bias.masked_fill_(hidden, -torch.inf)[:, None, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Keep the new keys and values [A, N, 1, H], and attend to all of the row's and to its prefix."""
        self.cache.write(layer, key, value, self.places)
        keys, values = self.cache.read(layer, self.first, self.rows, self.longest)
        if self.prefixes is None:
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.bias)
        return attend_with_prefixes(query, keys, values, self.bias, self.prefixes, layer)

    def attend_fused(self, fused: Tensor, rotary: tuple[Tensor, Tensor], layer: int) -> Tensor | None:
        """The same of what came out of the layer's first linear, [A, 1, 3NH], not turned yet; None without the kernel."""
        if self.lengths is None:
            return None
        keys, values = self.cache.slots_from(layer, self.first)
        query, own, own_sum = native.attend(fused, rotary, keys, values, self.lengths)
        return own if self.prefixes is None else add_prefixes(own, own_sum, query, self.prefixes, layer)


def _has_kernel(cache: SlotCache) -> bool:
    """Whether the native kernel attends to the rows' own tokens."""
    fits = cache.device.type == "cpu" and cache.dtype == torch.float32
    return fits and dispatch.has_native() and native.attends(cache.head_dim)


def decode_step(model: Any, tokens: Tensor, positions: Tensor, cache: StepCache) -> Tensor:
    """The last state of every row, behind the last layer norm: what the head takes.

    Args:
        model: with the backbone.
        tokens: [A] the newest token of every row.
        positions: [A, 2] where it stands.
        cache: of this step.

    Returns:
        [A, D].
    """
    backbone = model.transformer
    hidden = backbone.word_embeddings(tokens[:, None])
    rotary = rotary_table(positions[:, :, None], model.config.head_dim)
    visibility = Visibility()
    for layer in backbone.layers:
        hidden = layer(hidden, None, None, rotary, visibility, cache)
    return backbone.final_layernorm(hidden)[:, 0]
