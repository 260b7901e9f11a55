"""The largest products of a large float weight (the likeliest tokens of a head), without multiplying with all of it.

Beside the weight stands a copy in signed bytes, a quarter of float32's memory. Products with it, and what the copy may be
off at most (Cauchy and Schwarz), leave a few hundred of 130,528 rows that can be among the largest; these are multiplied
in float32. The outcome is that of the whole float32 product, to its rounding (``c/screening.c``). Where too many rows are
left, as where all are alike, nothing is gained and the caller multiplies with the whole weight.

Legend: M rows of activations, O rows of the weight, I input columns, K largest products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptuning.core import limits
from ptuning.kernels import dispatch, native
from ptuning.kernels.allocator import on_large_pages

MAX_LIKELIEST = 1024


class Likeliest(NamedTuple):
    """The largest products of every row of activations.

    Attributes:
        values: float32 [M, K], the largest first; NaN where the activations are not finite.
        places: int64 [M, K], the rows of the weight; of equal values the lower comes first.
    """

    values: Tensor
    places: Tensor


def fits(weight: Tensor) -> bool:
    """Whether a weight [O, I] can be screened here: on a CPU with AVX2, where the native kernel starts."""
    large = weight.dim() == 2 and weight.numel() >= limits.MIN_SCREENED and weight.shape[1] % native.SCREENED_COLUMNS == 0
    if not large or not weight.is_cpu or weight.dtype not in native.SCREENED_DTYPES or not weight.is_contiguous():
        return False
    return dispatch.has_native() and native.screen_pack() > 0


class ScreenedWeight:
    """A weight that must not change any more, with its copy in bytes.

    Args:
        weight: [O, I] float32, float16 or bfloat16; one that :func:`fits`.

    Attributes:
        usable: False for a weight with numbers that are not finite: multiply with all of it.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        outputs, columns = weight.shape
        padded = -(-outputs // native.screen_pack()) * native.screen_pack()
        self.bytes = on_large_pages(torch.empty(padded, columns, dtype=torch.int8))
        self.bytes[outputs:] = 0
        factors, sums = torch.zeros(3, padded, dtype=torch.float32), torch.zeros(padded, dtype=torch.int32)
        self.copy = (self.bytes, factors, sums)
        self.room = torch.empty(0, dtype=torch.float32)  # for bounds; kept, as new pages would take a tenth of the time
        self.usable = native.screen_copy(self.weight, self.copy)

    def likeliest(self, inputs: Tensor, k: int) -> Likeliest | None:
        """The K largest of ``inputs @ weight.T`` in every row; None where multiplying with all of the weight is better.

        Args:
            inputs: float32 [M, I].
            k: K, 1 to O.
        """
        if not self.usable:
            return None
        rows, padded = inputs.shape[0], self.bytes.shape[0]
        likeliest = Likeliest(torch.empty(rows, k, dtype=torch.float32), torch.empty(rows, k, dtype=torch.int64))
        if self.room.numel() < rows * (padded + 3):
            self.room = on_large_pages(torch.empty(rows * (padded + 3), dtype=torch.float32))
        return likeliest if native.screen(inputs, self.weight, self.copy, self.room, *likeliest) else None
