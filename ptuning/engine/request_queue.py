"""What other threads hand to the one that drives the engine: requests that wait, and actions between two steps.

Everything here may be called from any thread, and nobody is called back while the lock is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any

from ptuning.core.errors import UserError
from ptuning.engine.request import Generation, QueueFullError


class RequestQueue:
    """Requests before they run.

    Args:
        max_waiting: more raise :class:`QueueFullError`.

    Attributes:
        waiting: in the order in which they came.
        admitted: taken out to be run, and no rows yet.
        driven: whether a thread of its own drives the engine; actions are its business then.
        closed: that thread has ended, and nobody would answer what is added.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.waiting: deque[Generation] = deque()
        self.admitted: list[Generation] = []
        self.driven = self.closed = False
        self._actions: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lock = Lock()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to be done."""
        return not (self.waiting or self.admitted or self._actions)

    def add(self, generations: Sequence[Generation], limited: bool = True) -> bool:
        """Queue generations, all or none; False: nobody would answer them any more.

        Args:
            generations: that wait from here on.
            limited: False: however many wait already, and whoever will drive the engine.

        Raises:
            QueueFullError: too many wait.
            UserError: a prefix that was unloaded meanwhile.
        """
        with self._lock:
            if limited and self.closed:
                return False
            if limited and len(self.waiting) + len(generations) > self.max_waiting:
                raise QueueFullError(f"{len(self.waiting)} requests wait already; the limit is {self.max_waiting}")
            for prefix in (generation.request.prefix for generation in generations):
                if prefix is not None and prefix.removed:
                    raise UserError(f"the prefix {prefix.name} was unloaded")
            self.waiting.extend(generations)
            return True

    def admit(self, free: int, prefill_tokens: int) -> list[Generation]:
        """Take out the first that wait, as many as are free and as have together no more tokens (one always may)."""
        with self._lock:
            admitted: list[Generation] = []
            longest = 0
            while self.waiting and len(admitted) < free:
                longest = max(longest, len(self.waiting[0].request.prompt_ids))
                if admitted and longest * (len(admitted) + 1) > prefill_tokens:
                    break
                admitted.append(self.waiting.popleft())
            self.admitted = list(admitted)
            return admitted

    def take_admitted(self) -> list[Generation]:
        """Those that were taken out and have not ended; they run from here on, or are ended by the caller."""
        with self._lock:
            admitted, self.admitted = self.admitted, []
        return [generation for generation in admitted if generation.finish_reason is None]

    def drop(self, unwanted: Callable[[Generation], bool]) -> list[Generation]:
        """Take out of those that wait whatever is unwanted, to be ended by the caller."""
        dropped: list[Generation] = []
        kept: deque[Generation] = deque()
        with self._lock:
            for generation in self.waiting:  # asked once: somebody may cancel it meanwhile
                (dropped if unwanted(generation) else kept).append(generation)
            self.waiting = kept
        return dropped

    def cancel(self) -> None:
        """Cancel all that wait or are being admitted."""
        with self._lock:
            for generation in (*self.waiting, *self.admitted):
                generation.cancel()

    def add_action(self, action: Callable[[], Any]) -> tuple[Future[Any], bool]:
        """Where the outcome of an action will be, and whether a thread will carry it out; else somebody must :meth:`act`."""
        outcome: Future[Any] = Future()
        with self._lock:
            self._actions.append((action, outcome))
            return outcome, self.driven

    def act(self, refusal: BaseException | None = None) -> None:
        """Carry out all actions, or refuse them."""
        while True:
            with self._lock:
                if not self._actions:
                    return
                action, outcome = self._actions.popleft()
            try:
                if refusal is not None:
                    raise refusal
                outcome.set_result(action())
            except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
                outcome.set_exception(error)

    def open(self) -> None:
        """A thread drives the engine from here on."""
        with self._lock:
            self.driven, self.closed = True, False

    def close(self, anyhow: bool = False) -> bool:
        """That thread ends, if there is nothing left to be done (or anyhow); whether it does."""
        with self._lock:
            if not self.empty and not anyhow:
                return False
            self.driven, self.closed = False, True
            return True
