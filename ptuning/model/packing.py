"""Which tokens of a padded batch are computed at all, and where they stand.

Legend: B batch, T tokens, n tokens that are computed, w tokens whose output is kept, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the tokens that are computed stand in a padded batch. Between attention they lie one after the other, so that
    linears and layer norms do no work for padding.

    Attributes:
        batch: B.
        tokens: T.
        places: [n] of the tokens among the B*T, rising; None when all are computed.
        kept: [w] among the n, those whose output is asked for; None when all are. The last layer ends with these alone.
    """

    batch: int
    tokens: int
    places: Tensor | None
    kept: Tensor | None = None

    def pad(self, values: Tensor) -> Tensor:
        """[n, C] to [B, T, C], zeros at padding."""
        if self.places is not None:
            # index_copy would keep the values for backward.
            padded = values.new_zeros(self.batch * self.tokens, values.shape[1])
            values = padded.index_put((self.places,), values)
        return values.view(self.batch, self.tokens, -1)

    def unpad(self, values: Tensor) -> Tensor:
        """[B, T, C] to [n, C], or to [w, C]."""
        values = values.view(self.batch * self.tokens, -1)
        if self.places is None:
            return self.select(values)
        return values.index_select(0, self.places if self.kept is None else self.places[self.kept])

    def select(self, values: Tensor) -> Tensor:
        """[n, C] to [w, C], or as it is."""
        return values if self.kept is None else values.index_select(0, self.kept)


def pack(context_lengths: Tensor, real: Tensor | None, keep: Tensor) -> Packing:
    """Which tokens of a batch have to be computed for those that are kept: no padding, and nothing after the last of them.

    Args:
        context_lengths: [B]; the context sees all of itself and is needed whole.
        real: bool [B, T], False at padding, or None.
        keep: bool [B, T], tokens whose output is asked for.
    """
    batch, tokens = keep.shape
    column = torch.arange(tokens, device=keep.device)
    keep = keep if real is None else keep & real
    last = torch.where(keep, column, -1).amax(dim=1, keepdim=True)
    needed = (column <= last) | (column < context_lengths[:, None])
    needed = (needed if real is None else needed & real).flatten()
    places = needed.nonzero()[:, 0]
    kept = keep.flatten()[places].nonzero()[:, 0]
    every = batch * tokens
    return Packing(
        batch, tokens, None if len(places) == every else places, None if len(kept) == len(places) else kept
    )
