"""What the model asks of a linear: a float one, a half-precision one and a quantised one all have it.

Legend: I input columns, O output rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn


class Linear(Protocol):
    """A linear of the backbone, or the head.

    Attributes:
        in_features: I.
        out_features: O.
        weight: as it is stored, [O, I] or packed.
    """

    in_features: int
    out_features: int
    weight: nn.Parameter

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """[..., I] to [..., O]."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weight and bias, and what belongs to them."""


LinearFactory = Callable[..., nn.Module]
"""Makes a :class:`Linear`, called as ``linear(in_features, out_features, bias=True)``."""
