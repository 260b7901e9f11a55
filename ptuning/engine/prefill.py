"""Prompts through the backbone in one pass, their keys and values into slots.

Legend: B prompts, T tokens of the longest, P prefix slots, K position ids of a token, N heads, H head size, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptuning.engine.cache import SlotCache
from ptuning.engine.prefix_attention import PrefixReads, attend_with_prefixes
from ptuning.engine.prefix_pool import PrefixPool, SharedPrefix
from ptuning.model.answering import PrefixedModel
from ptuning.model.attention import DenseAttention
from ptuning.model.attention_context import AttentionContext
from ptuning.model.masks import AttentionMask


class PrefillWriter:
    """Puts the keys and values of prompts in slots while they go through the backbone; a
    :class:`~ptuning.model.attention_context.KeyValueCache` that holds nothing else.

    Args:
        cache: where they go.
        first: slot of the first row; the others follow.
        lengths: real tokens of every row; they stand on the right.
    """

    def __init__(self, cache: SlotCache, first: int, lengths: Sequence[int]) -> None:
        self.cache, self.first, self.lengths = cache, first, lengths

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep [B, N, T, H] of a layer and give the same back."""
        for row, length in enumerate(self.lengths):
            slot = self.first + row
            self.cache.keys[layer][slot, :, :length] = key[row, :, -length:]
            self.cache.values[layer][slot, :, :length] = value[row, :, -length:]
        return key, value


class MixedPrefill:
    """Attention of prompts with different prefixes, of which none is copied; an
    :class:`~ptuning.model.attention_context.AttentionBackend`.

    Args:
        writer: keeps keys and values.
        prefixes: how the prompts read theirs.
        mask: of the prompts alone, [B, 1, T, T].
    """

    def __init__(self, writer: PrefillWriter, prefixes: PrefixReads, mask: AttentionMask) -> None:
        self.writer, self.prefixes = writer, prefixes
        self.bias = mask.additive(writer.cache.dtype)

    def attend(self, fused: Tensor, context: AttentionContext, layer: int) -> Tensor:
        """[B, T, 3NH] to [B, T, NH]. What comes out at padding is finite, and nobody reads it."""
        query, key, value = context.heads.split(fused, context.rotary)
        self.writer.update(key, value, layer)
        mixed = attend_with_prefixes(query, key, value, self.bias, self.prefixes, layer)
        return mixed.transpose(1, 2).flatten(2)


def prefill(
    model: PrefixedModel,
    cache: SlotCache,
    pool: PrefixPool,
    prompts: Sequence[list[int]],
    prefixes: Sequence[SharedPrefix | None],
    first: int,
) -> tuple[Tensor, Tensor]:
    """Read prompts, each with its prefix.

    Args:
        model: with the backbone.
        cache: where their keys and values go.
        pool: where the prefixes stand; those of the prompts are acquired already.
        prompts: ids.
        prefixes: of each, None for the base model.
        first: slot of the first prompt; the others follow.

    Returns:
        the last states of the prompts [B, D], which the head takes, and the positions of the prompts' last tokens [B, K].
    """
    config, device = model.config, cache.device
    lengths = [len(ids) for ids in prompts]
    longest = max(lengths)
    cache.reserve(first + len(prompts), longest + 1)
    ids = torch.tensor([[config.pad_token_id] * (longest - len(ids)) + ids for ids in prompts], device=device)
    real: Tensor | None = None
    if min(lengths) < longest:
        missing = torch.tensor([longest - length for length in lengths], device=device)
        real = torch.arange(longest, device=device) >= missing[:, None]
    backbone, writer = model.transformer, PrefillWriter(cache, first, lengths)
    positions = backbone.position_ids(ids, real)
    last = torch.arange(longest, device=device).expand(ids.shape) == longest - 1
    packing = backbone.pack(ids, real, last)
    if len(set(prefixes)) == 1:
        key_values = pool.key_values(prefixes[0])
        mask = backbone.mask(ids, real, 0 if key_values is None else key_values[0][0].shape[2])
        context = backbone.context(positions, DenseAttention(writer), mask, key_values, packing)
    else:
        mixed = MixedPrefill(writer, PrefixReads(pool, prefixes, device), backbone.mask(ids, real))
        context = backbone.context(positions, mixed, packing=packing)
    return backbone.run(backbone.embed(ids, packing), context), positions[:, :, -1]
