"""The sizes of a model and of a prefix, from ``config.json`` alone; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptuning.core.characters import shown
from ptuning.core.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a backbone.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        num_layers: L.
        num_attention_heads: N.
        inner_hidden_size: I.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    inner_hidden_size: int

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> ModelSizes:
        """From the values of a ``config.json``; what is missing is the 6B model's.

        Raises:
            UserError: a size that is no whole number, or less than 1.
        """
        hidden = _size(values, "hidden_size", 4096)
        return cls(
            vocab_size=_size(values, "vocab_size", 130528),
            hidden_size=hidden,
            num_layers=_size(values, "num_layers", 28),
            num_attention_heads=_size(values, "num_attention_heads", 32),
            inner_hidden_size=_size(values, "inner_hidden_size", 4 * hidden),
        )

    @property
    def linear_weights(self) -> int:
        """Weights in the four linears of one block."""
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.inner_hidden_size

    @property
    def linear_rows(self) -> int:
        """Output rows of the four linears of one block."""
        return 5 * self.hidden_size + self.inner_hidden_size

    @property
    def embedding_weights(self) -> int:
        """Numbers in the embedding, and as many in the head."""
        return self.vocab_size * self.hidden_size

    @property
    def largest_linear(self) -> int:
        """Weights of the largest linear of a block."""
        return self.hidden_size * max(self.inner_hidden_size, 3 * self.hidden_size)


@dataclass(frozen=True)
class PrefixSizes:
    """A prefix: its length in tokens, and whether it is trained through a projection."""

    length: int = 0
    projection: bool = False


def prefix_numbers(sizes: ModelSizes, prefix: PrefixSizes) -> tuple[int, int]:
    """n and m: numbers in the keys and values of a prefix, and trained numbers."""
    width, hidden = 2 * sizes.num_layers * sizes.hidden_size, sizes.hidden_size
    states = prefix.length * width
    if not prefix.projection:
        return states, states
    return states, prefix.length * hidden + hidden * hidden + hidden + width * hidden + width


def size_text(amount: int) -> str:
    """Bytes as a message says them."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"


def _size(values: Mapping[str, Any], name: str, usual: int) -> int:
    """A size of a model, of which 0 is a value (that no model has) and None is none."""
    value = values.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {name} is {shown(value)}; must be a whole number, 1 or more")
    return value
