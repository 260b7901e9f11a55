"""What the host knows of a running row, and what the engine counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ptuning.engine.request import Generation
from ptuning.engine.sampler import RowSampler
from ptuning.engine.text_stream import TextStream


@dataclass(eq=False)
class Sequence:
    """A running generation: a row of the batch.

    Attributes:
        generation: what was asked, and the answer as it grows.
        sampler: what its sampling has to remember.
        limit: most tokens of the answer.
        columns: tokens in the cache.
        text: where text is wanted while it is made.
    """

    generation: Generation
    sampler: RowSampler
    limit: int
    columns: int
    text: TextStream | None


@dataclass
class Counters:
    """What the engine did since it was made: requests by how they ended, tokens, passes."""

    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0})
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefills: int = 0
    steps: int = 0
