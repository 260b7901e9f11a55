"""How the heads of a layer lie in what its first linear gives: the fused projection of queries, keys and values.

Legend: B batch, T tokens, N heads, H head size, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ptuning.model.rotary import apply_rotary


@dataclass(frozen=True)
class InterleavedHeads:
    """Query, key and value of one head side by side: [.., N, 3H], not three blocks of D.

    Attributes:
        num_heads: N.
        head_dim: H.
    """

    num_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Columns of the fused projection, 3NH."""
        return 3 * self.num_heads * self.head_dim

    def split(self, fused: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned by their positions, and values: [B, N, T, H] each.

        Args:
            fused: [B, T, 3NH].
            rotary: cosines and sines, each [B, 1, T, H].
        """
        batch, tokens, _ = fused.shape
        split = fused.view(batch, tokens, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)  # [3, B, N, T, H]
        query, key = apply_rotary(split[:2], *rotary)
        return query, key, split[2]
