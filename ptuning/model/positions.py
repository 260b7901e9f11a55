"""Masks and positions, built from ids: what a GLM row sees and where it stands (SPEC: forward pass).

Legend: B batch, T new tokens, S tokens seen (cached and new), P prefix slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.core.errors import UserError
from ptuning.model.attention import Packing, Visibility


@dataclass
class SequenceState:
    """What a cache has to remember beside keys and values, so that the next token finds its place.

    Attributes:
        last_position: [B, 2, 1] positions of the last cached token.
        real: bool [B, S], False at padding; None where there is none.
    """

    last_position: Tensor
    real: Tensor | None


def context_lengths(input_ids: Tensor, bos_token_id: int) -> Tensor:
    """Index of the first ``<sop>`` of every row, [B]: the columns before it are seen by all.

    Raises:
        UserError: a row without ``<sop>``.
    """
    is_bos = input_ids == bos_token_id
    found = is_bos.any(dim=1)
    if not bool(found.all()):
        row = int((~found).nonzero()[0])
        raise UserError(
            f"row {row} of the batch holds no <sop> (id {bos_token_id}), so it is not a ChatGLM-6B prompt; "
            "encode it with ptuning.load_tokenizer of the same model, which ends a prompt in [gMASK] <sop>"
        )
    return is_bos.int().argmax(dim=1)


def build_position_ids(
    input_ids: Tensor, real: Tensor | None, bos_token_id: int, mask_token_id: int, gmask_token_id: int
) -> Tensor:
    """Position ids and block position ids, [B, 2, T].

    Row 0 counts the context, then stays at the index of the mask token (``[gMASK]`` if present, else ``[MASK]``); row 1
    is 0 in the context and counts 1, 2, 3, … from ``<sop>`` on. Both count real tokens only; padding holds 0.

    Args:
        input_ids: [B, T].
        real: bool [B, T], False at padding, or None.
        bos_token_id: id of ``<sop>``; likewise the other two.

    Raises:
        UserError: a row without ``<sop>`` or without a mask token.
    """
    batch, tokens = input_ids.shape
    context = context_lengths(input_ids, bos_token_id)[:, None]
    is_gmask, is_mask = input_ids == gmask_token_id, input_ids == mask_token_id
    has_gmask, has_mask = is_gmask.any(dim=1), is_mask.any(dim=1)
    if not bool((has_gmask | has_mask).all()):
        row = int((~(has_gmask | has_mask)).nonzero()[0])
        raise UserError(
            f"row {row} of the batch holds neither [gMASK] (id {gmask_token_id}) nor [MASK] (id {mask_token_id}); "
            "encode it with ptuning.load_tokenizer of the same model, which ends a prompt in [gMASK] <sop>"
        )
    mask_column = torch.where(has_gmask, is_gmask.int().argmax(dim=1), is_mask.int().argmax(dim=1))[:, None]
    column = torch.arange(tokens, device=input_ids.device).expand(batch, tokens)
    counted = column if real is None else (real.long().cumsum(dim=1) - 1).clamp_min(0)
    answering = column >= context
    position = torch.where(answering, counted.gather(1, mask_column), counted)
    start = counted.gather(1, context)
    block = torch.where(answering, counted - start + 1, 0)
    stacked = torch.stack((position, block), dim=1)
    return stacked if real is None else stacked.masked_fill(~real[:, None], 0)


def continue_positions(state: SequenceState, tokens: int) -> Tensor:
    """Positions of ``tokens`` new tokens after the cached ones, [B, 2, T]: row 0 stays, row 1 counts on."""
    last = state.last_position
    steps = torch.arange(1, tokens + 1, device=last.device)
    return torch.cat((last[:, :1].expand(-1, -1, tokens), last[:, 1:] + steps), dim=1)


def prefix_lm_visibility(input_ids: Tensor, real: Tensor | None, bos_token_id: int, prefix: int) -> Visibility:
    """The prefix-LM mask of a whole sequence: the context is seen by all, the answer is causal.

    Args:
        input_ids: [B, T].
        real: bool [B, T] or None; padding is hidden as a column and sees nothing as a row.
        bos_token_id: id of ``<sop>``.
        prefix: P, columns put first that every row sees.
    """
    tokens = input_ids.shape[1]
    column = torch.arange(tokens, device=input_ids.device)
    context = context_lengths(input_ids, bos_token_id)[:, None, None]
    allowed = (column < context) | (column <= column[:, None])  # [B, T, T]
    if real is not None:
        allowed = allowed & real[:, None, :] & real[:, :, None]
    return finish_visibility(allowed[:, None], prefix)


def pack(input_ids: Tensor, real: Tensor | None, wanted: Tensor, bos_token_id: int) -> Packing:
    """Which tokens of a batch have to be computed for the wanted ones: no padding, and nothing behind the last of them.

    Args:
        input_ids: [B, T].
        real: bool [B, T], False at padding, or None.
        wanted: bool [B, T].
        bos_token_id: id of ``<sop>``; the context before it sees all of itself and is needed whole.
    """
    batch, tokens = input_ids.shape
    column = torch.arange(tokens, device=input_ids.device)
    wanted = wanted if real is None else wanted & real
    last = torch.where(wanted, column, -1).amax(dim=1, keepdim=True)
    needed = (column <= last) | (column < context_lengths(input_ids, bos_token_id)[:, None])
    needed = (needed if real is None else needed & real).flatten()
    places = needed.nonzero()[:, 0]
    kept = wanted.flatten()[places].nonzero()[:, 0]
    every = batch * tokens
    return Packing(
        batch, tokens, None if len(places) == every else places, None if len(kept) == len(places) else kept
    )


def step_visibility(real: Tensor | None, tokens: int, seen: int, prefix: int, device: torch.device) -> Visibility:
    """The mask of new tokens behind a cache: everything cached is seen, the new ones are causal.

    Args:
        real: bool [B, S] or None.
        tokens: T.
        seen: S.
        prefix: P.
    """
    if tokens == 1 and real is None:
        return Visibility()
    column = torch.arange(seen, device=device)
    allowed = (column <= column[seen - tokens :, None])[None]
    if real is not None:
        allowed = allowed & real[:, None, :]
    return finish_visibility(allowed[:, None], prefix)


def finish_visibility(allowed: Tensor, prefix: int) -> Visibility:
    """Put P always-visible columns first and mark the rows that see nothing at all.

    Args:
        allowed: bool [B, 1, T, S], True where the row sees the column.
        prefix: P.
    """
    if prefix:
        shape = (*allowed.shape[:-1], prefix)
        return Visibility(torch.cat((allowed.new_ones(shape), allowed), dim=-1))
    blind = ~allowed.any(dim=-1, keepdim=True)
    return Visibility(allowed | blind, blind)
