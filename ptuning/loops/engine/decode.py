"""One decode step: a token of every row through the backbone, each row with its own cache and its own prefix.

Legend: A rows, S columns in use, P prefix slots, N heads, H head size, V vocabulary, G and Q as in the bank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.blocks.attention import Visibility
from ptuning.blocks.rotary import rotary_table
from ptuning.loops.engine.prefix_bank import LengthBank, PrefixBank, Read, SharedPrefix
from ptuning.loops.engine.slot_cache import SlotCache


def attention_with_sum(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of each query's sum of exponentials, with which two attentions become one.

    Args:
        query: [B, N, T, H].
        key: [B, N, S, H]; likewise ``value``.
        bias: [B, 1, 1, S] with 0 or -infinity; None: every column is seen.

    Returns:
        [B, N, T, H] in the dtype of ``value``, and [B, N, T] float32.
    """
    fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if query.device.type == "cpu" and fused is not None:
        # What scaled_dot_product_attention runs on a CPU; called by name because the public function keeps the sum.
        return fused(query, key, value, 0.0, False, attn_mask=bias)
    scores = torch.matmul(query * (1.0 / math.sqrt(query.shape[-1])), key.transpose(2, 3)).float()
    if bias is not None:
        scores = scores + bias
    total = scores.logsumexp(dim=-1)
    return torch.matmul((scores - total[..., None]).exp().to(value.dtype), value), total


class PrefixReads:
    """How the rows of one batch read their prefixes; made anew when rows come or go, not per token.

    Args:
        bank: the prefixes.
        rows: the prefix of every row, None for the base model.
        device: of the backbone.
    """

    def __init__(self, bank: PrefixBank, rows: Sequence[SharedPrefix | None], device: torch.device) -> None:
        self.reads: list[tuple[LengthBank, Read]] = []
        place_of = [0] * len(rows)
        offset = 0
        for length_bank in bank.by_length.values():
            reads, places = length_bank.reads(rows)
            for row, place in places:
                place_of[row] = offset + place
            self.reads += [(length_bank, read) for read in reads]
            offset += sum(len(rows) if read.table is None else read.table.numel() for read in reads)
        self.straight = len(self.reads) == 1 and self.reads[0][1].table is None
        self.place_of = torch.tensor(place_of, device=device)
        without = [entry is None for entry in rows]
        self.without = torch.tensor(without, device=device)[:, None, None] if any(without) else None

    def attend(self, query: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Attention of the queries [A, N, 1, H] over the prefixes alone: [A, N, 1, H] and the sums [A, N, 1]."""
        mixed, sums = [], []
        flat = query.squeeze(2)
        for bank, (start, stop, table) in self.reads:
            asked = (flat if table is None else flat[table]).view(stop - start, -1, *flat.shape[1:]).transpose(1, 2)
            found, total = attention_with_sum(asked, bank.keys[layer][start:stop], bank.values[layer][start:stop], None)
            mixed.append(found.transpose(1, 2).reshape(-1, *flat.shape[1:]))
            sums.append(total.transpose(1, 2).reshape(-1, flat.shape[1]))
        if self.straight:
            return mixed[0].unsqueeze(2), sums[0].unsqueeze(2)
        together, total = torch.cat(mixed)[self.place_of].unsqueeze(2), torch.cat(sums)[self.place_of].unsqueeze(2)
        if self.without is not None:  # e to the minus infinity: these rows take nothing, to the last bit
            total = total.masked_fill(self.without, -torch.inf)
        return together, total


class StepCache:
    """Stands where the backbone expects a cache during one decode step.

    Args:
        cache: of all rows.
        columns: [A] where the new token of every row goes.
        longest: S, columns in use with the new ones.
        ragged: whether the rows' lengths differ.
        prefixes: how prefixes are read; None where no row has one.
    """

    def __init__(
        self, cache: SlotCache, columns: Tensor, longest: int, ragged: bool, prefixes: PrefixReads | None
    ) -> None:
        self.cache, self.prefixes = cache, prefixes
        self.rows, self.longest = columns.shape[0], longest
        self.places = cache.places(columns)
        self.bias: Tensor | None = None
        if ragged:
            hidden = torch.arange(longest, device=columns.device) > columns[:, None]
            self.bias = torch.zeros(hidden.shape, dtype=cache.dtype, device=columns.device)
            self.bias = self.bias.masked_fill_(hidden, -torch.inf)[:, None, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Keep the new keys and values [A, N, 1, H], and attend to all of the row's and to its prefix.

        The prefix and the row's own tokens are two attentions, put together by their sums of exponentials.
        """
        self.cache.write(layer, key, value, self.places)
        keys, values = self.cache.read(layer, self.rows, self.longest)
        if self.prefixes is None:
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.bias)
        own, own_sum = attention_with_sum(query, keys, values, self.bias)
        prefix, prefix_sum = self.prefixes.attend(query, layer)
        share = torch.sigmoid(prefix_sum - own_sum)[..., None]
        return torch.lerp(own.float(), prefix.float(), share).to(own.dtype)


def decode_step(model: Any, tokens: Tensor, positions: Tensor, cache: StepCache) -> Tensor:
    """Scores of the next token of every row.

    Args:
        model: backbone and head.
        tokens: [A] the newest token of every row.
        positions: [A, 2] where it stands.
        cache: of this step.

    Returns:
        [A, V].
    """
    backbone = model.transformer
    hidden = backbone.word_embeddings(tokens[:, None])
    rotary = rotary_table(positions[:, :, None], model.config.head_dim)
    visibility = Visibility()
    for layer in backbone.layers:
        hidden = layer(hidden, None, None, rotary, visibility, cache)
    return model.lm_head(backbone.final_layernorm(hidden))[:, 0]
