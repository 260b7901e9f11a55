"""Positions, built from ids: where every token of a GLM row stands.

Legend: B batch, T tokens, K position ids of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptuning.core.errors import UserError


def context_lengths(input_ids: Tensor, bos_token_id: int) -> Tensor:
    """Index of the first ``<sop>`` of every row, [B]: the columns before it are seen by all.

    Raises:
        UserError: a row without ``<sop>``.
    """
    is_bos = input_ids == bos_token_id
    has_bos = is_bos.any(dim=1)
    if not bool(has_bos.all()):
        row = int((~has_bos).nonzero()[0])
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


def continue_positions(last: Tensor, step: Sequence[int], tokens: int) -> Tensor:
    """Positions of new tokens after the cached ones, [B, K, T].

    Args:
        last: [B, K, 1], of the last cached token.
        step: what each further token adds to the K position ids.
        tokens: T.
    """
    count = torch.arange(1, tokens + 1, device=last.device)
    return torch.cat([last[:, row : row + 1] + added * count for row, added in enumerate(step)], dim=1)


def advance(positions: Tensor, step: Sequence[int]) -> None:
    """Move positions [A, K] on by one token, in place; ``step`` is that of :func:`continue_positions`."""
    for row, added in enumerate(step):
        if added:
            positions[:, row] += added
