"""transformers' cache, and what a cache has to remember beside keys and values.

Legend: B batch, S tokens seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache


@dataclass
class SequenceState:
    """Where the sequences of a cache stand, so that the next token finds its place.

    Attributes:
        last_position: [B, 2, 1] positions of the last cached token.
        real: bool [B, S], False at padding; None where there is none.
    """

    last_position: Tensor
    real: Tensor | None


class SequenceCache(DynamicCache):
    """The cache that our model makes where it is given none.

    Attributes:
        sequence_state: set by every forward pass.
    """

    sequence_state: SequenceState | None = None


def state_of(cache: Cache | None) -> SequenceState | None:
    """What the last forward pass left in a cache; None in one that our model has not filled."""
    state: SequenceState | None = getattr(cache, "sequence_state", None)
    return state


def set_state(cache: Cache, state: SequenceState) -> None:
    """Leave the state of the sequences in a cache. A cache of a user's, whatever its class, gets the attribute that
    :class:`SequenceCache` declares, so that copies of it carry the state."""
    cache.sequence_state = state  # type: ignore[attr-defined]
