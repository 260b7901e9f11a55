"""The cache of all running rows: one block of keys and values per layer, a slot for each row, columns from the left.

Legend: R slots, A rows in use (slots 0 to A-1), L layers, N heads, C columns, S columns in use, T tokens, H head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptuning.blocks.allocator import zeros_when_read


class SlotCache:
    """Keys and values [R, N, C, H] of every layer, made ahead.

    It grows by doubling, when a row is longer or rows are more than ever before, and never shrinks: no token allocates.
    Unused places hold zeros or old numbers, which are finite: a masked column is multiplied by zero, and zero times NaN
    would not be zero.

    Args:
        config: the backbone's; gives L, N, H.
        dtype: of the activations.
        device: where the backbone is.
        most_rows: R will not grow beyond.
        most_columns: C will not grow beyond.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device, most_rows: int, most_columns: int) -> None:
        self.heads, self.head_dim, self.layers = config.num_attention_heads, config.head_dim, config.num_layers
        self.dtype, self.device = dtype, device
        self.most_rows, self.most_columns = most_rows, most_columns
        self.rows = self.columns = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.offsets = torch.empty(0, 0)
        self.growths = 0

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for so many rows of so many columns; does nothing where there is room."""
        if rows > self.rows or columns > self.columns:
            self._grow(_doubled(self.rows or 1, rows), _doubled(self.columns or 128, columns))

    def prepare(self, rows: int, columns: int) -> None:
        """Make room for what is known to come, and for no more: nothing grows and is copied on the way there."""
        if rows > self.rows or columns > self.columns:
            self._grow(max(rows, self.rows), max(columns, self.columns))

    def _grow(self, rows: int, columns: int) -> None:
        shape = (min(self.most_rows, rows), self.heads, min(self.most_columns, columns), self.head_dim)
        for tensors in (self.keys, self.values):
            for layer in range(self.layers):  # one at a time: the peak is one layer, not the cache twice
                grown = zeros_when_read(shape, self.dtype, self.device)
                if self.rows:
                    grown[: self.rows, :, : self.columns] = tensors[layer]
                    tensors[layer] = grown
                else:
                    tensors.append(grown)
        self.rows, _, self.columns, _ = shape
        self.offsets = torch.arange(self.rows * self.heads, device=self.device).view(self.rows, self.heads) * self.columns
        self.growths += 1

    def places(self, columns: Tensor) -> Tensor:
        """Where the next token of every row goes, for :meth:`write`: [A] columns to [A * N] places of all layers alike."""
        return (self.offsets[: columns.shape[0]] + columns[:, None]).view(-1)

    def write(self, layer: int, key: Tensor, value: Tensor, places: Tensor) -> None:
        """Put the keys and values [A, N, 1, H] of one new token of every row in their places."""
        self.keys[layer].view(-1, self.head_dim).index_copy_(0, places, key.reshape(-1, self.head_dim))
        self.values[layer].view(-1, self.head_dim).index_copy_(0, places, value.reshape(-1, self.head_dim))

    def read(self, layer: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Views [A, N, S, H] of a layer's keys and values."""
        return self.keys[layer][:rows, :, :columns], self.values[layer][:rows, :, :columns]

    def move(self, source: int, target: int, columns: int) -> None:
        """Give the row of one slot another slot."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :columns] = tensor[source, :, :columns]

    def wipe(self, slot: int) -> None:
        """Forget a slot whose numbers may not be finite."""
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()


def _doubled(size: int, wanted: int) -> int:
    while size < wanted:
        size *= 2
    return size
