"""Answers that are waited for, in bounds: gradio keeps what nobody reads, and drops the oldest session for the newest."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ptuning.edges.web.functions import RefusedError

MAX_WAITING_SESSIONS = 1000
"""Sessions with something to read at once; gradio would end the answers of the oldest ones at twice as many."""
MAX_UNREAD = 200
"""Messages of a session that wait to be read when it asks for more; a page reads each within moments."""
UNREAD_SECONDS, PRESSED_SECONDS = 30.0, 2.0
"""So long an answer goes on that nobody has begun to read; the second one counts when there is no room."""


class QueueLimits:
    """The sessions in gradio's queue.

    Args:
        queue: gradio's.
        leave: called with a session whose answer is given up.
    """

    def __init__(self, queue: Any, leave: Callable[[str], None]) -> None:
        self.queue, self.leave = queue, leave
        # gradio keeps figures of every question, and works them out anew after each; the page shows them to nobody.
        queue.ANALYTICS_MAX_EVENTS, queue.ANAYLTICS_CACHE_FREQUENCY = 1, sys.maxsize
        self.readers: Counter[str] = Counter()
        self._unread: dict[str, float] = {}  # session: since when, the oldest first

    async def admit(self, session: str) -> None:
        """Make room for one more question of a session.

        Raises:
            RefusedError: it does not read its answers, or too many sessions wait.
        """
        await self._give_up(UNREAD_SECONDS)
        messages = self.queue.pending_messages_per_session
        waiting = messages.get(session)
        if waiting is not None and waiting.qsize() >= MAX_UNREAD:
            raise RefusedError(429, "answers of this session wait to be read: read /gradio_api/queue/data first")
        if waiting is None and len(messages) >= MAX_WAITING_SESSIONS:
            await self._give_up(PRESSED_SECONDS)
            self._forget_idle()
            if len(messages) >= MAX_WAITING_SESSIONS:
                raise RefusedError(503, "too many pages wait for answers; try again in a moment")
        if not self.readers[session]:
            self._unread.setdefault(session, time.monotonic())

    @contextmanager
    def reading(self, session: str) -> Iterator[None]:
        """While somebody reads the answers of a session.

        Raises:
            RefusedError: it asked nothing.
        """
        if session not in self.queue.pending_messages_per_session:
            raise RefusedError(404, "this session waits for no answer")
        self._unread.pop(session, None)
        self.readers[session] += 1
        try:
            yield
        finally:
            self.readers[session] -= 1
            if self.readers[session] <= 0:
                del self.readers[session]

    def owns(self, session: str, event: str) -> bool:
        """Whether an answer is one of the session's."""
        return event in self.queue.pending_event_ids_session.get(session, ())

    async def _give_up(self, seconds: float) -> None:
        """End the answers that nobody has begun to read for so long."""
        before = time.monotonic() - seconds
        for session in [name for name, since in self._unread.items() if since < before]:
            self._unread.pop(session, None)
            self.leave(session)
            await self.queue.clean_events(session_hash=session)
            self._forget(session)

    def _forget_idle(self) -> None:
        """Drop the sessions in which nothing happens."""
        events = {event.session_hash for event in self.queue.event_ids_to_events.values()}
        busy = events | self.readers.keys() | self._unread.keys()
        for session in [name for name in self.queue.pending_messages_per_session if name not in busy]:
            self._forget(session)
        messages, events_of = self.queue.pending_messages_per_session, self.queue.pending_event_ids_session
        for session in [name for name in events_of if name not in messages]:
            del events_of[session]

    def _forget(self, session: str) -> None:
        self.queue.pending_messages_per_session.pop(session, None)
        self.queue.pending_event_ids_session.pop(session, None)
