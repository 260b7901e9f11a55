"""One decode step: a token of every row through the backbone, each row with its own cache and its own prefix.

Legend: A rows, S columns in use with the new ones, K position ids of a token, N heads, H head size, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.engine.cache import SlotCache
from ptuning.engine.prefix_attention import PrefixReads, add_prefixes, attend_with_prefixes
from ptuning.kernels import dispatch, native
from ptuning.model.answering import PrefixedModel
from ptuning.model.attention_context import AttentionContext


class StepCache:
    """Attention of one decode step; an :class:`~ptuning.model.attention_context.AttentionBackend`.

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
        self.slot_mapping = cache.slot_mapping(columns, first)
        if ragged:
            hidden = torch.arange(longest, device=columns.device) > columns[:, None]
            self.bias = torch.zeros(hidden.shape, dtype=cache.dtype, device=columns.device)
            self.bias = self.bias.masked_fill_(hidden, -torch.inf)[:, None, None]

    def attend(self, fused: Tensor, context: AttentionContext, layer: int) -> Tensor:
        """Keep the new keys and values of [A, 1, 3NH], and attend to all of the row's and to its prefix: [A, 1, NH]."""
        if self.lengths is not None:
            keys, values = self.cache.slots_from(layer, self.first)
            query, own, own_sum = native.attend(fused, context.rotary, keys, values, self.lengths)
            mixed = own if self.prefixes is None else add_prefixes(own, own_sum, query, self.prefixes, layer)
            return mixed.view(self.rows, 1, -1)  # one token: heads and tokens lie the same in either order
        query, key, value = context.heads.split(fused, context.rotary)
        self.cache.write(layer, key, value, self.slot_mapping)
        keys, values = self.cache.read(layer, self.first, self.rows, self.longest)
        if self.prefixes is None:
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=self.bias)
        else:
            mixed = attend_with_prefixes(query, keys, values, self.bias, self.prefixes, layer)
        return mixed.transpose(1, 2).flatten(2)


def _has_kernel(cache: SlotCache) -> bool:
    """Whether the native kernel attends to the rows' own tokens."""
    fits = cache.device.type == "cpu" and cache.dtype == torch.float32 and cache.layout.has_native_kernel
    return fits and dispatch.has_native() and native.attends(cache.head_dim)


def decode_step(model: PrefixedModel, tokens: Tensor, positions: Tensor, cache: StepCache) -> Tensor:
    """The last state of every row, after the final layer norm: what the head takes.

    Args:
        model: with the backbone.
        tokens: [A] the newest token of every row.
        positions: [A, K] where it stands.
        cache: of this step.

    Returns:
        [A, D].
    """
    backbone = model.transformer
    context = backbone.context(positions[:, :, None], cache)
    return backbone.run(backbone.embed(tokens[:, None]), context)[:, 0]
