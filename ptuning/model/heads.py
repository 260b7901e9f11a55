"""How the heads of a layer lie in what its first linear gives: the fused projection of queries, keys and values.

Legend: B batch, T tokens, N heads, G key-value heads, H head size, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ptuning.model.rotary import apply_rotary


class HeadLayout(Protocol):
    """Where the heads of a layer are."""

    @property
    def num_key_value_heads(self) -> int:
        """G, of cache and prefix."""

    @property
    def head_dim(self) -> int:
        """H."""

    @property
    def width(self) -> int:
        """Columns of the fused projection."""

    @property
    def has_native_kernel(self) -> bool:
        """Whether the native kernel for a decoded token reads the fused projection as it lies."""

    def split(self, fused: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H] and keys [B, G, T, H], turned by their positions, and values [B, G, T, H].

        Args:
            fused: [B, T, width].
            rotary: cosines and sines, each [B, 1, T, H].
        """


@dataclass(frozen=True)
class InterleavedHeads:
    """Query, key and value of one head side by side: [.., N, 3H], not three blocks of D.

    Attributes:
        num_heads: N.
        head_dim: H.
    """

    num_heads: int
    head_dim: int
    has_native_kernel: ClassVar[bool] = True

    @property
    def num_key_value_heads(self) -> int:
        """N: every head has keys and values of its own."""
        return self.num_heads

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
