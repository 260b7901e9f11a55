"""What the model asks of a norm. Legend: D hidden."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Norm(Protocol):
    """A module that normalises hidden states.

    Attributes:
        weight: [D]; its dtype and device are those of the model's activations.
    """

    weight: nn.Parameter

    def __call__(self, hidden_states: Tensor, /) -> Tensor:
        """[..., D] to the same."""
