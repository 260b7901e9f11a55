"""Attention of a batch in which every row may have a prefix of its own, read where it stands.

Legend: A rows, B batch, T tokens, S columns, P prefix slots, N heads, H head size, G and Q as in the pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ptuning.engine.prefix_pool import LengthPool, PrefixPool, Read, SharedPrefix


def attention_with_sum(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of each query's sum of exponentials, with which two attentions become one.

    Args:
        query: [B, N, T, H].
        key: [B, N, S, H]; likewise ``value``.
        bias: [B, 1, T or 1, S] with 0 or -infinity; None: every column is seen.

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
    """How the rows of one batch read their prefixes; rebuilt when rows come or go, not per token.

    Args:
        pool: the prefixes.
        rows: the prefix of every row, None for the base model.
        device: of the backbone.
    """

    def __init__(self, pool: PrefixPool, rows: Sequence[SharedPrefix | None], device: torch.device) -> None:
        self.reads: list[tuple[LengthPool, Read]] = []
        place_of = [0] * len(rows)
        offset = 0
        for length_pool in pool.by_length.values():
            reads, places = length_pool.reads(rows)
            for row, place in places:
                place_of[row] = offset + place
            self.reads += [(length_pool, read) for read in reads]
            offset += sum(len(rows) if read.table is None else read.table.numel() for read in reads)
        if len(self.reads) == 1:
            only_pool, read = self.reads[0]
            order = [] if read.table is None else read.table.flatten().tolist()
            if place_of == order == list(range(len(rows))):  # the rows lie by prefix already
                self.reads = [(only_pool, read._replace(table=None))]
        self.straight = len(self.reads) == 1 and self.reads[0][1].table is None
        self.place_of = torch.tensor(place_of, device=device)
        without = [entry is None for entry in rows]
        self.without = torch.tensor(without, device=device)[:, None, None] if any(without) else None

    def attend(self, query: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Attention of the queries [A, N, T, H] over the prefixes alone: [A, N, T, H] and the sums [A, N, T]."""
        _, heads, tokens, size = query.shape
        mixed, sums = [], []
        flat = query.transpose(1, 2)
        for pool, (start, stop, table) in self.reads:
            queries = (flat if table is None else flat[table]).reshape(stop - start, -1, heads, size).transpose(1, 2)
            attended, total = attention_with_sum(queries, pool.keys[layer][start:stop], pool.values[layer][start:stop], None)
            mixed.append(attended.transpose(1, 2).reshape(-1, tokens, heads, size))
            sums.append(total.transpose(1, 2).reshape(-1, tokens, heads))
        if self.straight:
            return mixed[0].transpose(1, 2), sums[0].transpose(1, 2)
        all_mixed, all_sums = (mixed[0], sums[0]) if len(mixed) == 1 else (torch.cat(mixed), torch.cat(sums))
        together, total = all_mixed[self.place_of].transpose(1, 2), all_sums[self.place_of].transpose(1, 2)
        if self.without is not None:
            # These rows take nothing, to the last bit: e to the minus infinity times 0. What stands there is another row's,
            # which may be broken, and 0 times NaN would be NaN.
            total = total.masked_fill(self.without, -torch.inf)
            together = together.masked_fill(self.without[..., None], 0.0)
        return together, total


def attend_with_prefixes(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, prefixes: PrefixReads, layer: int
) -> Tensor:
    """Attention over a row's own tokens and its prefix: two attentions, put together by their sums of exponentials.

    Args:
        query: [A, N, T, H].
        key: of the rows' own tokens, [A, N, S, H]; likewise ``value``.
        bias: as in :func:`attention_with_sum`.
        prefixes: how the rows read theirs.
        layer: which of the prefixes' layers.

    Returns:
        [A, N, T, H].
    """
    return add_prefixes(*attention_with_sum(query, key, value, bias), query, prefixes, layer)


def add_prefixes(own: Tensor, own_sum: Tensor, query: Tensor, prefixes: PrefixReads, layer: int) -> Tensor:
    """The second half of :func:`attend_with_prefixes`, where the attention over the rows' own tokens is made already."""
    prefix, prefix_sum = prefixes.attend(query, layer)
    share = torch.sigmoid(prefix_sum - own_sum)[..., None]
    return torch.lerp(own.float(), prefix.float(), share).to(own.dtype)
