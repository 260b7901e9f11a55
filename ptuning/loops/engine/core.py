"""The engine: requests join and leave a running batch at token steps, over one backbone, with any prefix in any row.

A step admits waiting requests (their prompts go through the backbone in one pass: a GLM prompt sees all of itself, so it
cannot come in pieces), gives every running row one more token, and lets finished rows go. One thread at a time drives
:meth:`Engine.step`: :class:`~ptuning.loops.engine.worker.EngineWorker` in a server, :meth:`Engine.run` offline. ``submit``,
``cancel`` and ``wait`` may be called from any thread.

Legend: A running rows, B rows of a prefill, T tokens.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ptuning.blocks.prefix_encoder import PrefixKeyValues
from ptuning.loops.engine.choice import BROKEN, Choice, RowChoice
from ptuning.loops.engine.decode import StepCache, decode_step
from ptuning.loops.engine.head import Head
from ptuning.loops.engine.prefill import prefill
from ptuning.loops.engine.prefix_attention import PrefixReads
from ptuning.loops.engine.prefix_bank import PrefixBank, SharedPrefix
from ptuning.loops.engine.request import FinishReason, Generation, Listener, QueueFullError, Request
from ptuning.loops.engine.row import Counters, Row
from ptuning.loops.engine.slot_cache import SlotCache
from ptuning.plain.errors import UserError
from ptuning.plain.text_stream import TextStream, reply_text

logger = logging.getLogger(__name__)

_NOT_FINITE = (
    "the scores of a token are NaN or infinite: the weights or the prefix are damaged, or the number format is too narrow "
    "for them. Try --dtype bfloat16 or float32; if it stays, take an earlier checkpoint"
)


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
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.max_length = min(max_length or model.config.max_sequence_length, model.config.max_sequence_length)
        self.prefill_tokens = prefill_tokens or (1024 if self.device.type == "cpu" else 4096)
        self.admit_at_least = admit_at_least
        self.end_ids = frozenset({tokenizer.eos_token_id})
        self.counters = Counters()
        self.head = Head(model.lm_head)
        self.bank = PrefixBank()
        self.cache = SlotCache(model.config, model.dtype, model.device, max_rows, self.max_length)
        self.rows: list[Row] = []
        self.waiting: deque[Generation] = deque()
        self.wake: Callable[[], None] = lambda: None  # tells the driving thread that there is work
        self.driven_by_thread = False
        self._stepping = False
        self._lock = Lock()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._tokens = torch.zeros(max_rows, dtype=torch.long, device=self.device)
        self._columns = torch.zeros(max_rows, dtype=torch.long, device=self.device)
        self._positions = torch.zeros(max_rows, 2, dtype=torch.long, device=self.device)
        self._choice: Choice | None = None
        self._prefixes: PrefixReads | None = None

    # ---- what callers use, from any thread -------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Generation]:
        """Queue requests, all or none.

        Raises:
            UserError: a prompt that is none, or too long.
            QueueFullError: too many wait already.
        """
        generations = [self._generation(request, index, listener) for index, request in enumerate(requests)]
        with self._lock:
            if len(self.waiting) + len(generations) > self.max_waiting:
                raise QueueFullError(f"{len(self.waiting)} requests wait already; the limit is {self.max_waiting}")
            self.waiting.extend(generations)
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
        with self._lock:
            self.waiting.extend(generations)
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
        if not self.driven_by_thread:
            with torch.inference_mode():
                return action()
        outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def command() -> None:
            try:
                outcome.put((action(), None))
            except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
                outcome.put((None, error))

        self._commands.put(command)
        self.wake()
        value, error = outcome.get()
        if error is not None:
            raise error
        return value

    @property
    def idle(self) -> bool:
        """Whether nothing runs and a step would do nothing."""
        return not self._stepping and not self.rows and not self.waiting and self._commands.empty()

    # ---- a step, in the driving thread -----------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> bool:
        """One token for every running row. Returns whether anything runs or waits.

        Raises:
            RuntimeError: the device failed (memory, for instance); :meth:`fail_all` puts the engine in order again.
        """
        self._stepping = True
        try:
            while not self._commands.empty():
                self._commands.get()()
            self._drop_cancelled()
            self._admit()
            if self.rows:
                self._decode()
        finally:
            self._stepping = False
        return bool(self.rows or self.waiting)

    @torch.inference_mode()
    def fail_all(self, error: str) -> None:
        """End every running request with an error; those that wait go on."""
        for row in self.rows:
            self._end(row, "error", error)
        self._let_go([True] * len(self.rows))

    def cancel_all(self) -> None:
        """Cancel whatever runs or waits; the next step ends it."""
        with self._lock:
            waiting = list(self.waiting)
        for generation in (*waiting, *(row.generation for row in self.rows)):
            generation.cancel()

    def _generation(self, request: Request, index: int, listener: Listener | None) -> Generation:
        ids, config = request.prompt_ids, self.model.config
        if config.bos_token_id not in ids:
            raise UserError(f"the {len(ids)} ids hold no <sop> (id {config.bos_token_id}): this is no ChatGLM-6B prompt")
        if request.prefix is not None and request.prefix.removed:
            raise UserError(f"the prefix {request.prefix.name} was unloaded")
        if len(ids) >= self.max_length:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the limit of prompt and answer is {self.max_length}: shorten the "
                "question or its history"
            )
        made = Generation(request, index, listener=listener, _decode=lambda ids: reply_text(self.tokenizer, ids))
        if request.stream and listener is None:
            made._pieces = SimpleQueue()
        return made

    def _drop_cancelled(self) -> None:
        if any(generation.cancelled for generation in self.waiting):
            with self._lock:
                dropped = [generation for generation in self.waiting if generation.cancelled]
                self.waiting = deque(generation for generation in self.waiting if not generation.cancelled)
            for generation in dropped:
                self._count_end(generation, "cancelled")
        gone = [row.generation.cancelled for row in self.rows]
        if any(gone):
            for row, cancelled in zip(self.rows, gone, strict=True):
                if cancelled:
                    self._end(row, "cancelled")
            self._let_go(gone)

    def _remove_prefix(self, prefix: SharedPrefix) -> None:
        self.bank.remove(prefix)
        with self._lock:
            lost = [generation for generation in self.waiting if generation.request.prefix is prefix]
            self.waiting = deque(one for one in self.waiting if one.request.prefix is not prefix)
        for generation in lost:
            self._count_end(generation, "error", f"the prefix {prefix.name} was unloaded while this request waited")

    # ---- admission -------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take requests from the queue while there is room, and give each its first token."""
        free = self.max_rows - len(self.rows)
        if not self.waiting or free == 0 or (self.rows and free < min(self.admit_at_least, len(self.waiting))):
            return
        chosen: list[Generation] = []
        with self._lock:
            while self.waiting and len(chosen) < free:
                longest = max(len(one.request.prompt_ids) for one in (self.waiting[0], *chosen))
                if chosen and longest * (len(chosen) + 1) > self.prefill_tokens:
                    break
                chosen.append(self.waiting.popleft())
        if self.device.type == "cpu":
            self._prefill(chosen)
            return
        groups: dict[SharedPrefix | None, list[Generation]] = {}  # elsewhere a mixed pass would need the scores in memory
        for generation in chosen:
            groups.setdefault(generation.request.prefix, []).append(generation)
        for generations in groups.values():
            self._prefill(generations)

    def _prefill(self, generations: Sequence[Generation]) -> None:
        """Read prompts in one pass into the slots behind the running rows, and make rows of them."""
        prompts = [generation.request.prompt_ids for generation in generations]
        prefixes = [generation.request.prefix for generation in generations]
        choices = [RowChoice(generation.request, self.model.config.vocab_size, self.device) for generation in generations]
        first = len(self.rows)
        for prefix in prefixes:
            self.bank.take(prefix)
        try:
            states, positions = prefill(self.model, self.cache, self.bank, prompts, prefixes, first)
            tokens = self.head.choose(Choice(choices, self.device), states)
        except RuntimeError as error:  # the device's; torch's out-of-memory error is one
            logger.exception("prefill of %d prompts failed", len(prompts))
            for slot in range(first, min(self.cache.rows, first + len(prompts))):
                self.cache.wipe(slot)
            for generation, prefix in zip(generations, prefixes, strict=True):
                self.bank.release(prefix)
                self._count_end(generation, "error", str(error))
            return
        rows = slice(first, first + len(prompts))
        self._positions[rows] = positions
        self._columns[rows] = torch.tensor([len(ids) for ids in prompts], device=self.device)
        self.counters.prefills += 1
        self.counters.prompt_tokens += sum(map(len, prompts))
        self._join(generations, choices, tokens)

    def _join(self, generations: Sequence[Generation], choices: Sequence[RowChoice], tokens: Tensor) -> None:
        """Make rows of prompts that were just read, and give them their first tokens."""
        rows = []
        for generation, choice in zip(generations, choices, strict=True):
            request, length = generation.request, len(generation.request.prompt_ids)
            room = self.max_length - length
            limit = room if request.max_new_tokens is None else min(room, request.max_new_tokens)
            text = TextStream(self.tokenizer, request.stop) if request.stream or request.stop else None
            rows.append(Row(generation, choice, limit, length, text))
        first = len(self.rows)
        self.rows += rows
        self._tokens[first : len(self.rows)] = tokens
        self._choice = self._prefixes = None
        gone = [self._accept(row, token) for row, token in zip(rows, tokens.tolist(), strict=True)]
        self._let_go([False] * first + gone)

    # ---- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One step of every running row."""
        count = len(self.rows)
        if self._choice is None:
            self._choice = Choice([row.choice for row in self.rows], self.device)
            with_prefix = [row.generation.request.prefix for row in self.rows]
            self._prefixes = PrefixReads(self.bank, with_prefix, self.device) if any(with_prefix) else None
        lengths = [row.columns for row in self.rows]
        longest = max(lengths) + 1
        self.cache.reserve(count, longest)
        columns = self._columns[:count]
        self._positions[:count, 1] += 1
        step = StepCache(self.cache, columns, longest, min(lengths) + 1 < longest, self._prefixes)
        states = decode_step(self.model, self._tokens[:count], self._positions[:count], step)
        tokens = self.head.choose(self._choice, states)
        columns += 1
        self._tokens[:count] = tokens
        self.counters.steps += 1
        for row in self.rows:
            row.columns += 1
        # tolist is the step's one wait for the device.
        self._let_go([self._accept(row, token) for row, token in zip(self.rows, tokens.tolist(), strict=True)])

    def _accept(self, row: Row, token: int) -> bool:
        """Give a row its next token; returns whether that ended it."""
        generation = row.generation
        if generation.first_token is None:
            generation.mark_first_token()
        if token == BROKEN:
            self._end(row, "error", _NOT_FINITE)
            return True
        if token in self.end_ids:
            self._end(row, "stop")
            return True
        generation.ids.append(token)
        row.choice.add(token)
        self.counters.generated_tokens += 1
        if row.text is not None:
            generation.tell(row.text.add(token))
            if row.text.stopped:
                self._end(row, "stop")
                return True
        if len(generation.ids) >= row.limit:
            self._end(row, "length")
            return True
        return False

    def _end(self, row: Row, reason: FinishReason, error: str | None = None) -> None:
        if row.text is not None:
            row.generation.tell(row.text.end())
            if row.text.stopped and reason == "length":  # the stop text stood in what was held back
                reason = "stop"
        self._count_end(row.generation, reason, error)

    def _count_end(self, generation: Generation, reason: FinishReason, error: str | None = None) -> None:
        self.counters.finished[reason] += 1
        generation.finish(reason, error)

    def _let_go(self, gone: Sequence[bool]) -> None:
        """Free the slots of rows that ended; the last rows move into the holes, so that running rows stay together."""
        if not any(gone):
            return
        self._choice = self._prefixes = None
        for slot in reversed([slot for slot, over in enumerate(gone) if over]):
            row, last = self.rows[slot], len(self.rows) - 1
            if row.generation.finish_reason == "error":
                self.cache.wipe(slot)
            if slot != last:
                self.cache.move(last, slot, self.rows[last].columns)
                for state in (self._tokens, self._columns, self._positions):
                    state[slot] = state[last]
                self.rows[slot] = self.rows[last]
            self.rows.pop()
            self.bank.release(row.generation.request.prefix)
