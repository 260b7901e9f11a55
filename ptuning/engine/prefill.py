"""Prompts through the backbone in one pass, their keys and values into slots.

Legend: B prompts, T tokens of the longest, N heads, H head size, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.engine.cache import SlotCache
from ptuning.engine.prefix_attention import PrefixReads, attend_with_prefixes
from ptuning.engine.prefix_pool import PrefixBank, SharedPrefix
from ptuning.model.positions import build_position_ids, context_lengths


class PrefillWriter:
    """Stands where the backbone expects a cache while prompts go through it, and puts their keys and values in slots.

    Args:
        cache: where they go.
        first: slot of the first row; the others follow.
        lengths: real tokens of every row; they stand on the right.
    """

    def __init__(self, cache: SlotCache, first: int, lengths: Sequence[int]) -> None:
        self.cache, self.first, self.lengths = cache, first, lengths

    def get_seq_length(self) -> int:
        """Nothing was seen before."""
        return 0

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep [B, N, T, H] of a layer and give the same back."""
        for row, length in enumerate(self.lengths):
            slot = self.first + row
            self.cache.keys[layer][slot, :, :length] = key[row, :, -length:]
            self.cache.values[layer][slot, :, :length] = value[row, :, -length:]
        return key, value


class MixedPrefillWriter(PrefillWriter):
    """The same for prompts of different prefixes: it does the attention as well, and no prefix is copied.

    Args:
        cache, first, lengths: as above.
        prefixes: how the prompts read theirs.
        bias: [B, 1, T, T] with 0 or -infinity.
    """

    def __init__(
        self, cache: SlotCache, first: int, lengths: Sequence[int], prefixes: PrefixReads, bias: Tensor
    ) -> None:
        super().__init__(cache, first, lengths)
        self.prefixes, self.bias = prefixes, bias

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Keep [B, N, T, H] of a layer, and attend."""
        self.update(key, value, layer)
        return attend_with_prefixes(query, key, value, self.bias, self.prefixes, layer)


def prefill(
    model: Any,
    cache: SlotCache,
    bank: PrefixBank,
    prompts: Sequence[list[int]],
    prefixes: Sequence[SharedPrefix | None],
    first: int,
) -> tuple[Tensor, Tensor]:
    """Read prompts, each with its prefix.

    Args:
        model: with the backbone.
        cache: where their keys and values go.
        bank: where the prefixes stand; those of the prompts are taken already.
        prompts: ids.
        prefixes: of each, None for the base model.
        first: slot of the first prompt; the others follow.

    Returns:
        the last states of the prompts [B, D], which the head takes, and the positions of the prompts' last tokens [B, 2].
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
    positions = build_position_ids(ids, real, config.bos_token_id, config.mask_token_id, config.gmask_token_id)
    if len(set(prefixes)) == 1:
        writer = PrefillWriter(cache, first, lengths)
        key_values = bank.key_values(prefixes[0])
    else:
        bias = _bias(ids, real, config.bos_token_id, cache.dtype)
        writer = MixedPrefillWriter(cache, first, lengths, PrefixReads(bank, prefixes, device), bias)
        key_values = None
    last = torch.arange(longest, device=device).expand(ids.shape) == longest - 1
    output = model.transformer(ids, real, positions, writer, prefix_key_values=key_values, wanted=last)
    return output.last_hidden_state, positions[:, :, -1]


def _bias(ids: Tensor, real: Tensor | None, bos_token_id: int, dtype: torch.dtype) -> Tensor:
    """The prefix-LM mask [B, 1, T, T] as 0 and -infinity. Rows of padding see real columns: nobody reads what they give,
    but it must be finite."""
    column = torch.arange(ids.shape[1], device=ids.device)
    allowed = (column < context_lengths(ids, bos_token_id)[:, None, None]) | (column <= column[:, None])
    if real is not None:
        allowed = allowed & real[:, None, :]
    return torch.zeros(allowed.shape, dtype=dtype, device=ids.device).masked_fill_(~allowed, -torch.inf)[:, None]
