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
        generation: the request, and the answer as it grows.
        sampler: the state of its sampling.
        limit: maximum tokens of the answer.
        columns: tokens in the cache.
        text: decodes the answer while it is generated; None if nobody reads it before the end.
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
