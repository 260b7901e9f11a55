"""The cache of all running rows: one block of keys and values per layer, a slot for each row, columns from the left.

Legend: R slots, A rows in use (slots 0 to A-1), L layers, N key-value heads, C columns, S columns in use, T tokens,
H head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptuning.kernels.allocator import zeros_when_read
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families import family_of


class CacheLostError(RuntimeError):
    """Keys and values of running rows are no more: whoever runs must end."""


class SlotCache:
    """Keys and values [R, N, C, H] of every layer, made ahead.

    It grows by doubling, when a row is longer or rows are more than ever before, and never shrinks: no token allocates.
    Unused places hold zeros or old numbers, which are finite: a masked column is multiplied by zero, and zero times NaN
    would not be zero.

    Args:
        config: the backbone's; gives L, N, H.
        dtype: of the activations.
        device: where the backbone is.
        max_rows: R will not grow beyond.
        max_columns: C will not grow beyond.
    """

    def __init__(
        self, config: ChatGLMConfig, dtype: torch.dtype, device: torch.device, max_rows: int, max_columns: int
    ) -> None:
        self.layout = family_of(config).heads(config)
        self.heads, self.head_dim, self.layers = self.layout.num_key_value_heads, self.layout.head_dim, config.num_layers
        self.dtype, self.device = dtype, device
        self.max_rows, self.max_columns = max_rows, max_columns
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
        """Allocate for a known final size at once, so that nothing is copied while growing."""
        if rows > self.rows or columns > self.columns:
            self._grow(max(rows, self.rows), max(columns, self.columns))

    def _grow(self, rows: int, columns: int) -> None:
        """Larger tensors, one at a time: the peak is one layer, not the cache twice. Where memory runs out on the way, the
        cache is as before; where even that cannot be done, it is empty, and :class:`CacheLostError` says so."""
        shape = (min(self.max_rows, rows), self.heads, min(self.max_columns, columns), self.head_dim)
        try:
            rows, heads, columns, _ = shape
            offsets = torch.arange(rows * heads, device=self.device).view(rows, heads) * columns
            if self.rows:
                self._exchange(lambda old: self._grown(old, shape))
            else:
                self.keys, self.values = (
                    [zeros_when_read(shape, self.dtype, self.device) for _ in range(self.layers)] for _ in range(2)
                )
        except BaseException:
            self._shrink()
            raise
        self.rows, self.columns, self.offsets = rows, columns, offsets
        self.growths += 1

    def _exchange(self, replace: Callable[[Tensor], Tensor]) -> None:
        for tensors in (self.keys, self.values):
            for layer in range(self.layers):
                tensors[layer] = replace(tensors[layer])

    def _grown(self, old: Tensor, shape: tuple[int, ...]) -> Tensor:
        grown = zeros_when_read(shape, self.dtype, self.device)
        grown[: self.rows, :, : self.columns] = old
        return grown

    def _shrink(self) -> None:
        """Back to the size that the cache says it has.

        Raises:
            CacheLostError: that takes memory as well.
        """
        if not self.rows:
            return
        shape = (self.rows, self.heads, self.columns, self.head_dim)
        try:
            self._exchange(lambda old: old if old.shape == shape else old[: self.rows, :, : self.columns].clone())
        except Exception as error:
            self.forget()
            raise CacheLostError(f"the memory of all running answers was lost: {error}") from error

    def forget(self) -> None:
        """Be empty, as in the beginning."""
        self.rows = self.columns = 0
        self.keys, self.values = [], []

    def slot_mapping(self, columns: Tensor, first: int = 0) -> Tensor:
        """Where the next token of every row goes, for :meth:`write`: [A] columns to [A * N] places, alike in all layers.

        Args:
            columns: of the rows.
            first: slot of the first of them; the others follow.
        """
        return (self.offsets[first : first + columns.shape[0]] + columns[:, None]).view(-1)

    def write(self, layer: int, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
        """Put the keys and values [A, N, 1, H] of one new token of every row in their places (:meth:`slot_mapping`)."""
        self.keys[layer].view(-1, self.head_dim).index_copy_(0, slot_mapping, key.reshape(-1, self.head_dim))
        self.values[layer].view(-1, self.head_dim).index_copy_(0, slot_mapping, value.reshape(-1, self.head_dim))

    def read(self, layer: int, first: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Views [A, N, S, H] of a layer's keys and values, from the slot ``first`` on."""
        slots = slice(first, first + rows)
        return self.keys[layer][slots, :, :columns], self.values[layer][slots, :, :columns]

    def slots_from(self, layer: int, first: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, whole but for the slots before ``first``."""
        keys, values = self.keys[layer], self.values[layer]
        return (keys[first:], values[first:]) if first else (keys, values)

    def move(self, source: int, target: int, columns: int) -> None:
        """Give the row of one slot another slot."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :columns] = tensor[source, :, :columns]

    def wipe(self, slot: int) -> None:
        """Forget a slot whose numbers may not be finite."""
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()


def _doubled(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size
