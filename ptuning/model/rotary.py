"""Two-dimensional rotary positions.

Legend: B batch, T tokens, N heads, H head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10000.0


def rotary_table(position_ids: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, for both rotary spaces side by side.

    The first half of a head is turned by the position id, the second half by the block position id. Each half is a
    space of its own with ``head_dim/4`` frequencies. The published model keeps the frequencies in float16, so they are
    rounded to it here; the angles themselves are float32.

    Args:
        position_ids: [B, 2, T] position ids and block position ids.
        head_dim: H.

    Returns:
        cos, sin: [B, 1, T, H] float32; the sines with the sign that :func:`apply_rotary` gives the other half.
    """
    size = head_dim // 2
    steps = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = (1.0 / _BASE ** (steps / size)).to(torch.float16).to(torch.float32)
    angles = position_ids.to(torch.float32)[..., None] * frequencies  # [B, 2, T, H/4]
    turn, block_turn = angles[:, 0], angles[:, 1]
    table = torch.cat((turn, turn, block_turn, block_turn), dim=-1)[:, None]
    signed = torch.cat((-turn, turn, -block_turn, block_turn), dim=-1)[:, None]
    return table.cos(), signed.sin()


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys by their positions; computed in float32, returned in the dtype of ``states``.

    Args:
        states: [..., B, N, T, H].
        cos: [B, 1, T, H] from :func:`rotary_table`; likewise ``sin``.
    """
    wide = states.float()
    first, second, block_first, block_second = wide.chunk(4, dim=-1)
    across = torch.cat((second, first, block_second, block_first), dim=-1)
    return (wide * cos).add_(across * sin).to(states.dtype)  # addcmul would keep ``across`` for backward
