"""Who runs: requests join and leave the batch at token steps, and a failure ends the requests that caused it.

A pass through the backbone that fails is repeated for parts of the batch until it is known whose it was
(:mod:`.isolation`). So nothing is changed by a pass before its tokens are there; what follows for one row (its text, its
listener) fails for that row alone.
"""

from __future__ import annotations

import logging
from collections import abc
from typing import Any

from ptuning.engine.cache import CacheLostError
from ptuning.engine.delivery import Delivery
from ptuning.engine.isolation import in_parts, reason_of
from ptuning.engine.prefix_pool import SharedPrefix
from ptuning.engine.request import Generation
from ptuning.engine.request_queue import RequestQueue
from ptuning.engine.runner import Runner
from ptuning.engine.sampler import RowSampler
from ptuning.engine.sequence import Sequence
from ptuning.engine.slots import Slots
from ptuning.engine.text_stream import TextStream
from ptuning.model.families import family_of

logger = logging.getLogger(__name__)

_MAX_REPEATED = 3  # steps in a row that fail for the whole batch and for no part of it; then it gets smaller


class Scheduler:
    """Takes requests out of the queue, gives each a slot, and lets it go when its answer ends.

    Args:
        queue: what waits.
        runner: does the steps.
        delivery: takes the tokens.
        tokenizer: of the model.
        max_rows, max_length, prefill_tokens, admit_at_least: see :class:`~ptuning.engine.engine.Engine`.

    Attributes:
        sequences: that run, by slot.
        end_ids: tokens that end an answer.
    """

    def __init__(
        self,
        queue: RequestQueue,
        runner: Runner,
        delivery: Delivery,
        tokenizer: Any,
        *,
        max_rows: int,
        max_length: int,
        prefill_tokens: int,
        admit_at_least: int,
    ) -> None:
        self.queue, self.runner, self.delivery, self.tokenizer = queue, runner, delivery, tokenizer
        self.max_rows, self.max_length = max_rows, max_length
        self.prefill_tokens, self.admit_at_least = prefill_tokens, admit_at_least
        self.end_ids = family_of(runner.model.config).stop_ids(tokenizer)
        self.counters = delivery.counters
        self.slots = Slots(runner, lambda sequence, why: delivery.end(sequence, "error", why))
        self.sequences = self.slots.sequences
        self._repeated = 0  # steps in a row that failed for the whole batch and for nobody in particular

    def step(self) -> None:
        """One token for every running row, after those that were cancelled left and those that may came in."""
        self._drop_cancelled()
        self._admit()
        if self.sequences:
            self._decode()

    # ---- who leaves before a step ----------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        for generation in (*self.queue.drop(lambda generation: generation.cancelled), *self.queue.take_admitted()):
            self.delivery.finish(generation, "cancelled")  # none is being admitted, unless Ctrl-C came between
        generations = [sequence.generation for sequence in self.sequences]
        gone = [generation.cancelled or generation.finish_reason is not None for generation in generations]
        if any(gone):
            for sequence, over in zip(self.sequences, gone, strict=True):
                if over:
                    self.delivery.end(sequence, "cancelled")
            self._free(gone)

    def remove_prefix(self, prefix: SharedPrefix) -> None:
        """Let a prefix go: requests that still wait for it end in an error."""
        try:
            self.runner.prefix_pool.remove(prefix)
        finally:
            reason = f"the prefix {prefix.name} was unloaded while this request waited"
            for generation in self.queue.drop(lambda generation: generation.request.prefix is prefix):
                self.delivery.finish(generation, "error", reason)

    def fail_all(self, error: str) -> None:
        """End every request that runs or is being admitted with an error, and start over; those that wait stay."""
        for sequence in self.sequences:
            self.delivery.end(sequence, "error", error)
        for generation in self.queue.take_admitted():
            self.delivery.finish(generation, "error", error)
        self.runner.rows_changed()
        self.slots.forget()

    # ---- admission -------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take requests from the queue while there is room, and give each its first token."""
        free, waiting = self.max_rows - len(self.sequences), len(self.queue.waiting)
        if not waiting or free == 0 or (self.sequences and free < min(self.admit_at_least, waiting)):
            return
        admitted = self.queue.admit(free, self.prefill_tokens)
        groups: dict[SharedPrefix | None, list[Generation]] = {}
        on_cpu = self.runner.device.type == "cpu"
        for generation in admitted:  # but on a CPU, a mixed pass would need the scores in memory
            groups.setdefault(None if on_cpu else generation.request.prefix, []).append(generation)
        try:
            for generations in groups.values():
                self._prefill(generations)
        except CacheLostError:
            raise
        except Exception as error:  # not the reading, which would have been repeated
            logger.exception("admission failed")
            self._end_admitted(reason_of(error))
        self.queue.take_admitted()

    def _prefill(self, generations: list[Generation]) -> None:
        """Read prompts in one pass into the slots after the running rows; those that could be read join them."""
        for part, read, reason in in_parts("the prefill", generations, self._read):
            if read is not None:
                self._join(*read)
                continue
            self.slots.give_back(len(part))
            if len(part) == 1:
                self.delivery.finish(part[0], "error", reason)

    def _read(self, generations: list[Generation]) -> tuple[list[Sequence], list[int]]:
        """New sequences and their first tokens. Changes nothing but the slots after the running rows."""
        newcomers = [self._sequence(generation) for generation in generations]
        self.slots.reserve(newcomers)
        return newcomers, self.runner.prefill(newcomers, len(self.sequences))

    def _sequence(self, generation: Generation) -> Sequence:
        request, model = generation.request, self.runner.model
        length = len(request.prompt_ids)
        limit = request.sampling.answer_limit(length, self.max_length)
        stop = request.sampling.stop
        text = TextStream(self.tokenizer, stop) if request.stream or stop else None
        return Sequence(generation, RowSampler(request, model.config.vocab_size, self.runner.device), limit, length, text)

    def _join(self, newcomers: list[Sequence], tokens: list[int]) -> None:
        """Prompts that were read become rows, and get their first tokens."""
        first = len(self.sequences)
        self.sequences += newcomers
        self.runner.rows_changed()
        self.counters.prefills += 1
        self.counters.prompt_tokens += sum(sequence.columns for sequence in newcomers)
        gone = [self.delivery.accept(*newcomer, self.end_ids) for newcomer in zip(newcomers, tokens, strict=True)]
        self._free([False] * first + gone)

    def _end_admitted(self, error: str) -> None:
        """End those that were being admitted, rows already or not; the others stay."""
        admitted = self.queue.take_admitted()
        for sequence in self.sequences:
            if sequence.generation in admitted:
                self.delivery.end(sequence, "error", error)
        self._free([sequence.generation.finish_reason is not None for sequence in self.sequences])
        for generation in admitted:
            self.delivery.finish(generation, "error", error)
        self.slots.give_back(len(admitted))

    # ---- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One step of every running row."""
        gone = [False] * len(self.sequences)
        failures = []
        for slots, tokens, reason in in_parts("a decode step", range(len(self.sequences)), self._next_tokens):
            part = self.sequences[slots.start : slots.stop]
            if tokens is not None:
                self.counters.steps += 1
                for slot, sequence, token in zip(slots, part, tokens, strict=True):
                    gone[slot] = self.delivery.accept(sequence, token, self.end_ids)
                continue
            failures.append(len(slots))
            self.runner.rows_changed()
            for sequence in part:
                sequence.sampler.rewind(sequence.generation.ids)
            if len(slots) == 1:
                self.delivery.end(part[0], "error", reason)
                gone[slots.start] = True
        self._repeated = self._repeated + 1 if failures and 1 not in failures else 0
        if self._repeated == _MAX_REPEATED:  # nobody's in particular: memory, most likely, for so many
            last = max(range(len(self.sequences)), key=lambda slot: self.sequences[slot].generation.first_token or 0.0)
            self.delivery.end(self.sequences[last], "error", "a step failed again and again for so many answers at a time")
            gone[last], self._repeated = True, 0
        self._free(gone)

    def _next_tokens(self, slots: range) -> list[int]:
        return self.runner.decode(self.sequences[slots.start : slots.stop], slots.start)

    def _free(self, gone: abc.Sequence[bool]) -> None:
        """Rows that ended leave."""
        if any(gone):
            self.runner.rows_changed()
            self.slots.free(gone)
