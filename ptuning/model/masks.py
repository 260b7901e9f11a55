"""Masks of attention: which columns every row may look at. They are made here and nowhere else.

Legend: B batch, T new tokens, S tokens seen (cached and new), P prefix slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptuning.core.errors import UserError


class AttentionMask(NamedTuple):
    """Which columns every row may look at.

    Attributes:
        allowed: bool [B, 1, T, P+S], True where row t sees the column; None when every row sees everything.
        blind: bool [B, 1, T, 1], True for rows that see nothing; None when there are none. The published code gives all
            columns of such a row the same score, so it averages over all of them; so do we, and no NaN arises.
    """

    allowed: Tensor | None = None
    blind: Tensor | None = None

    def additive(self, dtype: torch.dtype) -> Tensor | None:
        """The same to be added to scores: 0 where a column is seen, -infinity elsewhere; [B, 1, T, P+S]."""
        if self.allowed is None:
            return None
        zeros = torch.zeros(self.allowed.shape, dtype=dtype, device=self.allowed.device)
        return zeros.masked_fill_(~self.allowed, -torch.inf)


SEES_ALL = AttentionMask()
"""Every row sees everything."""


def sequence_mask(context_lengths: Tensor, input_ids: Tensor, real: Tensor | None, prefix: int) -> AttentionMask:
    """The prefix-LM mask of whole sequences: the context is seen by all, the answer is causal.

    Args:
        context_lengths: [B], columns of the context; 0 where all is causal.
        input_ids: [B, T].
        real: bool [B, T] or None; padding is hidden as a column and sees nothing as a row.
        prefix: P, columns put first that every row sees.
    """
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    allowed = (column < context_lengths[:, None, None]) | (column <= column[:, None])  # [B, T, T]
    if real is not None:
        allowed = allowed & real[:, None, :] & real[:, :, None]
    return mask_with_prefix(allowed[:, None], prefix)


def cached_mask(real: Tensor | None, tokens: int, seen: int, prefix: int, device: torch.device) -> AttentionMask:
    """The mask of new tokens after cached ones: everything cached is seen, the new ones are causal.

    Args:
        real: bool [B, S] or None.
        tokens: T.
        seen: S.
        prefix: P.
        device: of the tokens.
    """
    if tokens == 1 and real is None:
        return SEES_ALL
    column = torch.arange(seen, device=device)
    allowed = (column <= column[seen - tokens :, None])[None]
    if real is not None:
        allowed = allowed & real[:, None, :]
    return mask_with_prefix(allowed[:, None], prefix)


def mask_with_prefix(allowed: Tensor, prefix: int) -> AttentionMask:
    """Prepend P columns that every row sees, and mark the rows that see nothing at all.

    Args:
        allowed: bool [B, 1, T, S], True where the row sees the column.
        prefix: P.
    """
    if prefix:
        shape = (*allowed.shape[:-1], prefix)
        return AttentionMask(torch.cat((allowed.new_ones(shape), allowed), dim=-1))
    blind = ~allowed.any(dim=-1, keepdim=True)
    return AttentionMask(allowed | blind, blind)


def real_tokens(mask: Tensor | None, before: Tensor | None, seen: int, tokens: int) -> Tensor | None:
    """Which tokens are no padding, from the ``attention_mask`` that a caller gave.

    Args:
        mask: [B, S] with 1 for real tokens, the published form (:func:`published_mask`), or None.
        before: bool [B, S-T], what the cache remembers; None where it holds no padding.
        seen: S.
        tokens: T.

    Returns:
        bool [B, S], False at padding, or None where every token is real.

    Raises:
        UserError: a mask of another shape.
    """
    if mask is None:
        if before is None:
            return None
        return torch.cat((before, before.new_ones(before.shape[0], tokens)), dim=1)
    if mask.dim() == 4:
        # The newest token sees every real column, so what it does not see is padding.
        real = published_mask(mask, tokens, seen)[:, 0, -1]
        return None if bool(real.all()) else real
    if mask.dim() != 2 or mask.shape[1] != seen:
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)}; allowed are [batch, {seen}] with 1 for real tokens and "
            f"the published [batch, 1, {tokens}, {seen}] with True for masked ones"
        )
    real = mask.bool()
    return None if bool(real.all()) else real


def published_mask(mask: Tensor, tokens: int, seen: int) -> Tensor:
    """A mask in the published form, True for *masked*, as bool [B, 1, T, S] with True for seen.

    Args:
        mask: bool [B, 1, T or more, S]; its last rows belong to the new tokens.
        tokens: T.
        seen: S.

    Raises:
        UserError: another dtype or shape.
    """
    if mask.dtype != torch.bool or mask.shape[3] != seen or mask.shape[2] < tokens:
        raise UserError(
            f"a 4-D attention_mask must be bool [batch, 1, {tokens}, {seen}] with True for masked; "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return ~mask[:, :, -tokens:]
