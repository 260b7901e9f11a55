"""The engine: requests join and leave a running batch at token steps, over one backbone, with any prefix in any row.

A step admits waiting requests (their prompts go through the backbone in one pass: a GLM prompt sees all of itself, so it
cannot come in pieces), gives every running row one more token, and lets finished rows go. The way of a request:
:meth:`Engine.submit` queues it, :class:`~.scheduler.Scheduler` decides when it runs, :class:`~.runner.Runner` does the steps
on the device, :class:`~.sampler.Sampler` makes tokens of scores, and :class:`~.delivery.Delivery` text of tokens.

One thread at a time drives :meth:`Engine.step`: :class:`~ptuning.engine.worker.EngineWorker` in a server, :meth:`Engine.run`
offline. ``submit``, ``cancel`` and ``wait`` may be called from any thread. Whatever goes wrong in a step ends the requests
that made it go wrong, each with an error, and no others.
"""

from __future__ import annotations

import logging
from collections import abc
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from threading import RLock, get_ident
from typing import Any

import torch

from ptuning.engine.delivery import Delivery
from ptuning.engine.isolation import reason_of
from ptuning.engine.prefix_pool import SharedPrefix
from ptuning.engine.request import Generation, Listener, Request
from ptuning.engine.request_queue import RequestQueue
from ptuning.engine.runner import Runner
from ptuning.engine.scheduler import Scheduler
from ptuning.engine.sequence import Counters, Sequence
from ptuning.engine.text_stream import reply_text
from ptuning.model.answering import PrefixedModel
from ptuning.model.prefix_encoder import PrefixKeyValues
from ptuning.settings.answer_limits import checked_size

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model.

    Args:
        model: backbone and head; a prefix attached to it is ignored.
        tokenizer: of the model.
        max_rows: requests that run at a time.
        max_waiting: requests that may wait beside them; more raise :class:`QueueFullError`.
        max_length: limit of prompt and answer together; None: the model's ``max_sequence_length``.
        prefill_tokens: prompts admitted in one step have together no more tokens (one prompt always may): the longest
            that running rows wait. None: 1024 on a CPU, whose cache then holds the activations, elsewhere 4096.
        admit_at_least: admit only when so many rows are free or none runs; more than 1 trades latency for throughput.
        screened: whether the head may be screened, which takes a copy of it (see :class:`~.head.Head`).
    """

    def __init__(
        self,
        model: PrefixedModel,
        tokenizer: Any,
        *,
        max_rows: int = 32,
        max_waiting: int = 256,
        max_length: int | None = None,
        prefill_tokens: int | None = None,
        admit_at_least: int = 1,
        screened: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.device = model.eval(), tokenizer, model.device
        self.max_rows, self.max_waiting = checked_size("max_rows", max_rows), checked_size("max_waiting", max_waiting, 0)
        context = model.config.max_sequence_length
        self.max_length = context if max_length is None else min(checked_size("max_length", max_length), context)
        usual = 1024 if self.device.type == "cpu" else 4096
        self.queue = RequestQueue(self.max_waiting)
        self.runner = Runner(model, self.max_rows, self.max_length, screened)
        self.delivery = Delivery(lambda: self.queue.driven)
        self.scheduler = Scheduler(
            self.queue, self.runner, self.delivery, tokenizer, max_rows=self.max_rows, max_length=self.max_length,
            prefill_tokens=usual if prefill_tokens is None else checked_size("prefill_tokens", prefill_tokens),
            admit_at_least=checked_size("admit_at_least", admit_at_least),
        )  # fmt: skip
        self.wake: Callable[[], None] = lambda: None  # tells the driving thread that there is work
        self._driving, self._driver, self._stepping = RLock(), 0, False  # _driver: the thread that takes a step

    # ---- what callers use, from any thread -------------------------------------------------------------------------

    def submit(self, requests: abc.Sequence[Request], listener: Listener | None = None) -> list[Generation]:
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

    def run(self, requests: abc.Sequence[Request]) -> Iterator[Generation]:
        """Answer many requests, longest prompt first (memory that will not do fails at once); drives the engine itself.

        Yields:
            generations as they finish; ``index`` is the place among ``requests``. Leaving early cancels the rest.
        """
        order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt_ids), index))
        done: SimpleQueue[Generation] = SimpleQueue()
        generations = [
            self._generation(requests[index], index, lambda ended, _: done.put(ended) if ended.finish_reason else None)
            for index in order
        ]
        if self.device.type == "cpu":  # on an accelerator, space reserved for the longest answers would be occupied at once
            columns = max((len(item.prompt_ids) + (item.sampling.max_new_tokens or 0) for item in requests), default=0)
            self.runner.cache.prepare(min(self.max_rows, len(requests)), min(self.max_length, columns + 1))
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
        return self.between_steps(lambda: self.runner.prefix_pool.add(name, key_values))

    def remove_prefix(self, prefix: SharedPrefix) -> None:
        """Let a prefix go; rows that read it finish, requests that still wait for it end in an error."""
        self.between_steps(lambda: self.scheduler.remove_prefix(prefix))

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
        """Cancel all running and waiting requests; the next step ends them."""
        self.queue.cancel()
        for sequence in list(self.running):
            sequence.generation.cancel()

    @property
    def running(self) -> list[Sequence]:
        """The rows of the batch, by their slots."""
        return self.scheduler.sequences

    @property
    def waiting(self) -> abc.Sequence[Generation]:
        """Requests that wait, in their order."""
        return self.queue.waiting

    @property
    def counters(self) -> Counters:
        """What was done so far."""
        return self.delivery.counters

    @property
    def idle(self) -> bool:
        """Whether nothing runs and a step would do nothing."""
        return not self._stepping and not self.running and self.queue.empty

    # ---- a step, in the driving thread -----------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> bool:
        """One token for every running row. Returns whether anything runs or waits.

        A failure ends the requests that caused it, each with an error; if the cause is unknown, it ends all running ones.
        """
        if self._driver == get_ident():
            raise RuntimeError("a listener cannot take a step: it is called within one")
        with self._driving:
            self._driver, self._stepping = get_ident(), True
            try:
                self.queue.act()
                self.scheduler.step()
            except Exception as error:
                logger.exception("a step of the engine failed")
                self.fail_all(f"the step failed: {reason_of(error)}")
            finally:
                self._driver, self._stepping = 0, False
        return bool(self.running or self.waiting)

    @torch.inference_mode()
    def fail_all(self, error: str) -> None:
        """End every request that runs or is being admitted with an error, and start over; those that wait stay."""
        with self._driving:
            self.scheduler.fail_all(error)

    def open(self, wake: Callable[[], None]) -> None:
        """A thread drives the engine from here on.

        Args:
            wake: tells it that there is work.
        """
        self.wake = wake
        self.queue.open()

    def close(self) -> bool:
        """The thread that drives it ends, unless there is something left to be done; whether it does."""
        return not self.running and self.queue.close()

    def abandon(self, error: str) -> None:
        """End the driving thread's work, whatever is left, so that no caller waits for ever."""
        self.queue.close(force=True)
        self.queue.act(RuntimeError(error))
        if not self.idle:
            for generation in self.queue.drop(lambda _: True):
                self.delivery.finish(generation, "error", error)
            self.fail_all(error)

    def _generation(self, request: Request, index: int, listener: Listener | None) -> Generation:
        request.check(self.model.config, self.max_length)
        generation = Generation(request, index, listener=listener, _decode=partial(reply_text, self.tokenizer))
        if request.stream and listener is None:
            generation._pieces = SimpleQueue()
        return generation
