"""The engine: requests join and leave a running batch at token steps, over one backbone, with any prefix in any row.

A step admits waiting requests (their prompts go through the backbone in one pass: a GLM prompt sees all of itself, so it
cannot come in pieces), gives every running row one more token, and lets finished rows go. One thread at a time drives
:meth:`Engine.step`: :class:`~ptuning.engine.worker.EngineWorker` in a server, :meth:`Engine.run` offline. ``submit``,
``cancel`` and ``wait`` may be called from any thread.

Whatever goes wrong in a step ends the requests that made it go wrong, each with an error, and no others. A pass through the
backbone that fails is repeated for parts of the batch until it is known whose it was (:mod:`.isolation`). So nothing is
changed by a pass before its tokens are there; what follows for one row (its text, its listener) fails for that row alone.

Legend: A running rows, B rows of a prefill, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import RLock, get_ident
from typing import Any

import torch

from ptuning.engine.cache import CacheLostError, SlotCache
from ptuning.engine.decode import StepCache, decode_step
from ptuning.engine.delivery import Delivery
from ptuning.engine.head import Head
from ptuning.engine.isolation import in_parts, reason_of
from ptuning.engine.prefill import prefill
from ptuning.engine.prefix_attention import PrefixReads
from ptuning.engine.prefix_pool import PrefixPool, SharedPrefix
from ptuning.engine.request import Generation, Listener, Request
from ptuning.engine.request_queue import RequestQueue
from ptuning.engine.sampler import Choice, RowChoice
from ptuning.engine.sequence import Row
from ptuning.engine.slots import Slots
from ptuning.engine.text_stream import TextStream, reply_text
from ptuning.model.families import family_of
from ptuning.model.prefix_encoder import PrefixKeyValues
from ptuning.settings.answer_limits import checked_size

logger = logging.getLogger(__name__)

_MOST_REPEATED = 3  # steps in a row that fail for the whole batch and for no part of it; then it gets smaller


class Engine:
    """Continuous batching over one model.

    Args:
        model: backbone and head; a prefix that is attached to it is not looked at.
        tokenizer: of the model.
        max_rows: requests that run at a time.
        max_waiting: requests that may wait beside them; more raise :class:`QueueFullError`.
        max_length: limit of prompt and answer together; None: the model's ``max_sequence_length``.
        prefill_tokens: prompts admitted in one step have together no more tokens (one prompt always may): the longest
            that running rows wait. None: 1024 on a CPU, whose cache then holds the activations, elsewhere 4096.
        admit_at_least: admit only when so many rows are free or none runs; more than 1 trades latency for throughput.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_rows: int = 32,
        max_waiting: int = 256,
        max_length: int | None = None,
        prefill_tokens: int | None = None,
        admit_at_least: int = 1,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.device = model.device
        self.max_rows, self.max_waiting = checked_size("max_rows", max_rows), checked_size("max_waiting", max_waiting, 0)
        longest = model.config.max_sequence_length
        self.max_length = longest if max_length is None else min(checked_size("max_length", max_length), longest)
        usual = 1024 if self.device.type == "cpu" else 4096
        self.prefill_tokens = usual if prefill_tokens is None else checked_size("prefill_tokens", prefill_tokens)
        self.admit_at_least = checked_size("admit_at_least", admit_at_least)
        family = family_of(model.config)
        self.end_ids = family.stop_ids(tokenizer)
        self.head = Head(model.lm_head)
        self.bank = PrefixPool()
        self.cache = SlotCache(model.config, model.dtype, model.device, self.max_rows, self.max_length)
        self.queue = RequestQueue(self.max_waiting)
        self.delivery = Delivery(lambda: self.queue.driven)
        self.counters = self.delivery.counters
        self.slots = Slots(self.cache, self.bank, lambda row, why: self.delivery.end(row, "error", why), family)
        self.rows = self.slots.rows
        self.wake: Callable[[], None] = lambda: None  # tells the driving thread that there is work
        self._driving, self._driver, self._stepping = RLock(), 0, False  # _driver: the thread that takes a step
        self._choice: Choice | None = None  # of all rows; likewise how they read their prefixes
        self._prefixes: PrefixReads | None = None
        self._repeated = 0  # steps in a row that failed for the whole batch and for nobody in particular

    # ---- what callers use, from any thread -------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Generation]:
        """Queue requests, all or none. Where nobody will answer any more, because the worker was stopped, they end at once.

        Raises:
            UserError: a prompt that is none, or too long.
            QueueFullError: too many wait already.
        """
        generations = [self._generation(request, index, listener) for index, request in enumerate(requests)]
        if not self.queue.add(generations):
            for generation in generations:
                self.delivery.finish(generation, "error", "the engine was stopped")
        self.wake()
        return generations

    def run(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer many requests, longest prompt first (memory that will not do fails at once); drives the engine itself.

        Yields:
            generations as they finish; ``index`` is the place among ``requests``. Leaving early cancels the rest.
        """
        order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt_ids), index))
        done: SimpleQueue[Generation] = SimpleQueue()
        generations = [
            self._generation(requests[index], index, lambda one, piece: done.put(one) if one.finish_reason else None)
            for index in order
        ]
        if self.device.type == "cpu":  # elsewhere room that short answers leave would be taken all the same
            columns = max((len(one.prompt_ids) + (one.max_new_tokens or 0) for one in requests), default=0)
            self.cache.prepare(min(self.max_rows, len(requests)), min(self.max_length, columns + 1))
        self.queue.add(generations, limited=False)
        try:
            for _ in generations:
                while done.empty():
                    self.step()
                yield done.get()
        finally:
            for generation in generations:
                generation.cancel()
            while self.step():
                pass

    def add_prefix(self, name: str, key_values: PrefixKeyValues) -> SharedPrefix:
        """Take in a prefix's keys and values (per layer [1, N, P, H]); requests name what comes back."""
        return self.between_steps(lambda: self.bank.add(name, key_values))

    def remove_prefix(self, prefix: SharedPrefix) -> None:
        """Let a prefix go; rows that read it finish, requests that still wait for it end in an error."""
        self.between_steps(lambda: self._remove_prefix(prefix))

    def between_steps(self, action: Callable[[], Any]) -> Any:
        """Run something while no step runs, in the driving thread where there is one, and return what it returns."""
        if self._driver == get_ident():  # a listener, which is called between two things that a step does
            return action()
        outcome, driven = self.queue.add_action(action)
        self.wake()
        while not (driven or outcome.done()):  # whoever takes steps by hand does it, or nobody does
            if self._driving.acquire(timeout=0.01):
                with torch.inference_mode():
                    self.queue.act()
                self._driving.release()
        return outcome.result()

    def cancel_all(self) -> None:
        """Cancel whatever runs or waits; the next step ends it."""
        self.queue.cancel()
        for row in list(self.rows):
            row.generation.cancel()

    @property
    def waiting(self) -> Sequence[Generation]:
        """Requests that wait, in their order."""
        return self.queue.waiting

    @property
    def idle(self) -> bool:
        """Whether nothing runs and a step would do nothing."""
        return not self._stepping and not self.rows and self.queue.empty

    # ---- a step, in the driving thread -----------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> bool:
        """One token for every running row. Returns whether anything runs or waits.

        What fails ends those that made it fail, each with an error; where that cannot be told, all that run.
        """
        if self._driver == get_ident():
            raise RuntimeError("a listener cannot take a step: it is called within one")
        with self._driving:
            self._driver, self._stepping = get_ident(), True
            try:
                self.queue.act()
                self._drop_cancelled()
                self._admit()
                if self.rows:
                    self._decode()
            except Exception as error:
                logger.exception("a step of the engine failed")
                self.fail_all(f"the step failed: {reason_of(error)}")
            finally:
                self._driver, self._stepping = 0, False
        return bool(self.rows or self.waiting)

    @torch.inference_mode()
    def fail_all(self, error: str) -> None:
        """End every request that runs or is being admitted with an error, and begin anew; those that wait go on."""
        with self._driving:
            for row in self.rows:
                self.delivery.end(row, "error", error)
            for generation in self.queue.take_admitted():
                self.delivery.finish(generation, "error", error)
            self._choice = self._prefixes = None
            self.slots.forget()

    def open(self, wake: Callable[[], None]) -> None:
        """A thread drives the engine from here on.

        Args:
            wake: tells it that there is work.
        """
        self.wake = wake
        self.queue.open()

    def close(self) -> bool:
        """The thread that drives it ends, unless there is something left to be done; whether it does."""
        return not self.rows and self.queue.close()

    def abandon(self, error: str) -> None:
        """The thread that drives it ends, whatever is left: nobody may wait for it for ever."""
        self.queue.close(anyhow=True)
        self.queue.act(RuntimeError(error))
        if not self.idle:
            for generation in self.queue.drop(lambda _: True):
                self.delivery.finish(generation, "error", error)
            self.fail_all(error)

    def _generation(self, request: Request, index: int, listener: Listener | None) -> Generation:
        request.check(self.model.config, self.max_length)
        made = Generation(request, index, listener=listener, _decode=lambda ids: reply_text(self.tokenizer, ids))
        if request.stream and listener is None:
            made._pieces = SimpleQueue()
        return made

    def _drop_cancelled(self) -> None:
        for generation in (*self.queue.drop(lambda one: one.cancelled), *self.queue.take_admitted()):
            self.delivery.finish(generation, "cancelled")  # none is being admitted, unless Ctrl-C came between
        gone = [row.generation.cancelled or row.generation.finish_reason is not None for row in self.rows]
        if any(gone):
            for row, cancelled in zip(self.rows, gone, strict=True):
                if cancelled:
                    self.delivery.end(row, "cancelled")
            self._let_go(gone)

    def _remove_prefix(self, prefix: SharedPrefix) -> None:
        try:
            self.bank.remove(prefix)
        finally:
            lost = f"the prefix {prefix.name} was unloaded while this request waited"
            for generation in self.queue.drop(lambda one: one.request.prefix is prefix):
                self.delivery.finish(generation, "error", lost)

    # ---- admission -------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take requests from the queue while there is room, and give each its first token."""
        free, waiting = self.max_rows - len(self.rows), len(self.waiting)
        if not waiting or free == 0 or (self.rows and free < min(self.admit_at_least, waiting)):
            return
        chosen = self.queue.admit(free, self.prefill_tokens)
        groups: dict[SharedPrefix | None, list[Generation]] = {}
        for generation in chosen:  # but on a CPU, a mixed pass would need the scores in memory
            groups.setdefault(None if self.device.type == "cpu" else generation.request.prefix, []).append(generation)
        try:
            for generations in groups.values():
                self._prefill(generations)
        except CacheLostError:
            raise
        except Exception as error:  # not the reading, which would have been repeated
            logger.exception("admission failed")
            self._end_admitted(reason_of(error))
        self.queue.take_admitted()

    def _end_admitted(self, error: str) -> None:
        """End those that were being admitted, rows already or not; the others go on."""
        admitted = self.queue.take_admitted()
        for row in self.rows:
            if row.generation in admitted:
                self.delivery.end(row, "error", error)
        self._let_go([row.generation.finish_reason is not None for row in self.rows])
        for generation in admitted:
            self.delivery.finish(generation, "error", error)
        self.slots.give_back(len(admitted))

    def _prefill(self, generations: list[Generation]) -> None:
        """Read prompts in one pass into the slots behind the running rows, and make rows of them."""

        def failed(generations: list[Generation], reason: str) -> None:
            self.slots.give_back(len(generations))
            if len(generations) == 1:
                self.delivery.finish(generations[0], "error", reason)

        in_parts("the prefill", generations, self._read, self._join, failed)

    def _read(self, generations: list[Generation]) -> tuple[list[Row], list[int]]:
        """Prompts through the backbone: rows to be, and their first tokens. Changes nothing but slots behind the rows."""
        first, slots = len(self.rows), self.slots
        rows = [self._row(generation) for generation in generations]
        prompts = [generation.request.prompt_ids for generation in generations]
        prefixes = [generation.request.prefix for generation in generations]
        slots.clean(len(rows))
        for prefix in prefixes:
            self.bank.acquire(prefix)
        states, positions = prefill(self.model, self.cache, self.bank, prompts, prefixes, first)
        tokens = self.head.choose(Choice([row.choice for row in rows], self.device), states)
        places = slice(first, first + len(rows))
        slots.tokens[places] = tokens
        slots.columns[places] = torch.tensor([row.columns for row in rows], device=self.device)
        slots.positions[places] = positions
        slots.advance(places)
        return rows, tokens.tolist()

    def _row(self, generation: Generation) -> Row:
        request = generation.request
        length = len(request.prompt_ids)
        room = self.max_length - length
        limit = room if request.max_new_tokens is None else min(room, request.max_new_tokens)
        text = TextStream(self.tokenizer, request.stop) if request.stream or request.stop else None
        return Row(generation, RowChoice(request, self.model.config.vocab_size, self.device), limit, length, text)

    def _join(self, _: Sequence[Generation], read: tuple[list[Row], list[int]]) -> None:
        """Prompts that were read become rows, and get their first tokens."""
        rows, tokens = read
        first = len(self.rows)
        self.rows += rows
        self._choice = self._prefixes = None
        self.counters.prefills += 1
        self.counters.prompt_tokens += sum(row.columns for row in rows)
        gone = [self.delivery.accept(row, token, self.end_ids) for row, token in zip(rows, tokens, strict=True)]
        self._let_go([False] * first + gone)

    # ---- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One step of every running row."""
        gone = [False] * len(self.rows)
        failures = []

        def done(slots: range, tokens: list[int]) -> None:
            for slot, token in zip(slots, tokens, strict=True):
                gone[slot] = self.delivery.accept(self.rows[slot], token, self.end_ids)

        def failed(slots: range, reason: str) -> None:
            failures.append(len(slots))
            self._choice = self._prefixes = None
            for row in self.rows[slots.start : slots.stop]:
                row.choice.rewind(row.generation.ids)
            if len(slots) == 1:
                self.delivery.end(self.rows[slots.start], "error", reason)
                gone[slots.start] = True

        in_parts("a decode step", range(len(self.rows)), self._next_tokens, done, failed)
        self._repeated = self._repeated + 1 if failures and 1 not in failures else 0
        if self._repeated == _MOST_REPEATED:  # nobody's in particular: memory, most likely, for so many
            last = max(range(len(self.rows)), key=lambda slot: self.rows[slot].generation.first_token or 0.0)
            self.delivery.end(self.rows[last], "error", "a step failed again and again for so many answers at a time")
            gone[last], self._repeated = True, 0
        self._let_go(gone)

    def _next_tokens(self, slots: range) -> list[int]:
        """The next token of some rows that lie side by side. Changes nothing before the tokens are there."""
        first, stop = slots.start, slots.stop
        rows = self.rows[first:stop]
        choice, prefixes = self._choice, self._prefixes
        if choice is None:
            choice = Choice([row.choice for row in rows], self.device)
            with_prefix = [row.generation.request.prefix for row in rows]
            prefixes = PrefixReads(self.bank, with_prefix, self.device) if any(with_prefix) else None
            if len(rows) == len(self.rows):
                self._choice, self._prefixes = choice, prefixes
        lengths = [row.columns for row in rows]
        longest = max(lengths) + 1
        self.cache.reserve(stop, longest)
        columns, positions = self.slots.columns[first:stop], self.slots.positions[first:stop]
        step = StepCache(self.cache, columns, longest, min(lengths) + 1 < longest, prefixes, first)
        states = decode_step(self.model, self.slots.tokens[first:stop], positions, step)
        tokens = self.head.choose(choice, states)
        chosen = tokens.tolist()  # the step's one wait for the device
        self.slots.tokens[first:stop] = tokens
        columns += 1
        self.slots.advance(slice(first, stop))
        self.counters.steps += 1
        for row in rows:
            row.columns += 1
        return chosen

    def _let_go(self, gone: Sequence[bool]) -> None:
        """Rows that ended leave."""
        if any(gone):
            self._choice = self._prefixes = None
            self.slots.let_go(gone)
