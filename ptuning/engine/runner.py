"""One step on the device: prompts are read, or every row gets one more token. Who runs is the scheduler's business.

Legend: R slots, A rows in use, K position ids of a token, D hidden.
"""

from __future__ import annotations

from collections import abc
from typing import NamedTuple

import torch

from ptuning.engine.cache import SlotCache
from ptuning.engine.decode import StepCache, decode_step
from ptuning.engine.head import Head
from ptuning.engine.prefill import prefill
from ptuning.engine.prefix_attention import PrefixReads
from ptuning.engine.prefix_pool import PrefixPool
from ptuning.engine.sampler import Sampler
from ptuning.engine.sequence import Sequence
from ptuning.model.answering import PrefixedModel
from ptuning.model.families import family_of
from ptuning.model.positions import advance


class _Batch(NamedTuple):
    """What is made of the sequences of a step and stays as long as they are the same."""

    sequences: list[Sequence]
    sampler: Sampler
    prefixes: PrefixReads | None


class Runner:
    """The model, and all that the device keeps of running rows. A row is known by its slot.

    Args:
        model: backbone and head.
        max_rows: R.
        max_length: columns of a slot.
        screened: whether the head may be screened, see :class:`Head`.

    Attributes:
        cache: keys and values of the rows.
        prefix_pool: keys and values of the prefixes.
        tokens: [R] the newest token of every row; ``columns``: [R] where it goes in the cache; ``positions``: [R, K] where
            it stands.
    """

    def __init__(self, model: PrefixedModel, max_rows: int, max_length: int, screened: bool = True) -> None:
        self.model, self.device = model, model.device
        self.head = Head(model.lm_head, screened)
        self.prefix_pool = PrefixPool()
        self.cache = SlotCache(model.config, model.dtype, model.device, max_rows, max_length)
        self.tokens = torch.zeros(max_rows, dtype=torch.long, device=self.device)
        self.columns = torch.zeros_like(self.tokens)
        self._position_step = family_of(model.config).position_step
        self.positions = torch.zeros(max_rows, len(self._position_step), dtype=torch.long, device=self.device)
        self._batch: _Batch | None = None

    def prefill(self, sequences: abc.Sequence[Sequence], first: int) -> list[int]:
        """Read prompts in one pass into the slots from ``first`` on; the first token of each answer.

        Their prefixes are taken already. Changes nothing but these slots.
        """
        requests = [sequence.generation.request for sequence in sequences]
        prompts, prefixes = [request.prompt_ids for request in requests], [request.prefix for request in requests]
        states, positions = prefill(self.model, self.cache, self.prefix_pool, prompts, prefixes, first)
        tokens = self.head.sample(Sampler([sequence.sampler for sequence in sequences], self.device), states)
        slots = slice(first, first + len(sequences))
        self.tokens[slots] = tokens
        self.columns[slots] = torch.tensor([sequence.columns for sequence in sequences], device=self.device)
        self.positions[slots] = positions
        advance(self.positions[slots], self._position_step)
        return tokens.tolist()  # type: ignore[no-any-return]

    def decode(self, sequences: list[Sequence], first: int) -> list[int]:
        """The next token of the rows in the slots from ``first`` on. Changes nothing before the tokens are there."""
        stop = first + len(sequences)
        _, sampler, prefixes = self._batch_of(sequences)
        lengths = [sequence.columns for sequence in sequences]
        longest = max(lengths) + 1
        self.cache.reserve(stop, longest)
        columns, positions = self.columns[first:stop], self.positions[first:stop]
        step = StepCache(self.cache, columns, longest, min(lengths) + 1 < longest, prefixes, first)
        states = decode_step(self.model, self.tokens[first:stop], positions, step)
        tokens = self.head.sample(sampler, states)
        next_tokens: list[int] = tokens.tolist()  # the step's one wait for the device
        self.tokens[first:stop] = tokens
        columns += 1
        advance(positions, self._position_step)
        for sequence in sequences:
            sequence.columns += 1
        return next_tokens

    def rows_changed(self) -> None:
        """Rows came, left, or are to be tried again: how they sample and read their prefixes is made again."""
        self._batch = None

    def move(self, source: int, target: int, columns: int) -> None:
        """Give the row of one slot, which has so many columns, another slot."""
        self.cache.move(source, target, columns)
        for state in (self.tokens, self.columns, self.positions):
            state[target] = state[source]

    def _batch_of(self, sequences: list[Sequence]) -> _Batch:
        if self._batch is None or self._batch.sequences != sequences:
            sampler = Sampler([sequence.sampler for sequence in sequences], self.device)
            prefixes = [sequence.generation.request.prefix for sequence in sequences]
            reads = PrefixReads(self.prefix_pool, prefixes, self.device) if any(prefixes) else None
            self._batch = _Batch(sequences, sampler, reads)
        return self._batch
