"""Limits of gradio's queue, which by itself keeps answers that nobody reads, and ends the oldest session for a new one."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ptuning.edges.web.functions import RefusedError

MAX_WAITING_SESSIONS = 1000
"""Sessions in the queue at a time; at twice as many, gradio would end the answers of the oldest."""
MAX_UNREAD = 200
"""Unread messages of a session at which it may not ask again; a page reads each message within moments."""
UNREAD_SECONDS, CROWDED_UNREAD_SECONDS = 30.0, 2.0
"""How long an answer continues that nobody has begun to read; the second limit counts when the queue is full."""


class QueueLimits:
    """Admits sessions to gradio's queue, and ends the answers that nobody reads.

    Args:
        queue: gradio's.
        leave: called with a session whose answer is ended.
    """

    def __init__(self, queue: Any, leave: Callable[[str], None]) -> None:
        self.queue, self.leave = queue, leave
        # gradio computes statistics of all questions after each of them; nobody sees them on this page.
        queue.ANALYTICS_MAX_EVENTS, queue.ANAYLTICS_CACHE_FREQUENCY = 1, sys.maxsize
        self.readers: Counter[str] = Counter()
        self._unread: dict[str, float] = {}  # session: since when its answer is unread; oldest first

    async def admit(self, session: str) -> None:
        """Make room for one more question of a session.

        Raises:
            RefusedError: the session does not read its answers, or too many sessions are waiting.
        """
        await self._end_unread(UNREAD_SECONDS)
        messages = self.queue.pending_messages_per_session
        unread = messages.get(session)
        if unread is not None and unread.qsize() >= MAX_UNREAD:
            raise RefusedError(429, "answers of this session wait to be read: read /gradio_api/queue/data first")
        if unread is None and len(messages) >= MAX_WAITING_SESSIONS:
            await self._end_unread(CROWDED_UNREAD_SECONDS)
            self._remove_idle()
            if len(messages) >= MAX_WAITING_SESSIONS:
                raise RefusedError(503, "too many pages wait for answers; try again in a moment")
        if not self.readers[session]:
            self._unread.setdefault(session, time.monotonic())

    @contextmanager
    def reading(self, session: str) -> Iterator[None]:
        """A context for the time in which a client reads the answers of a session.

        Raises:
            RefusedError: the session has asked nothing.
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
        """Whether an answer in the queue belongs to a session."""
        return event in self.queue.pending_event_ids_session.get(session, ())

    async def _end_unread(self, seconds: float) -> None:
        """End the answers that have been unread for so long."""
        expired = time.monotonic() - seconds
        for session in [name for name, since in self._unread.items() if since < expired]:
            self._unread.pop(session, None)
            self.leave(session)
            await self.queue.clean_events(session_hash=session)
            self._remove(session)

    def _remove_idle(self) -> None:
        """Remove the sessions without an answer in progress or a reader."""
        events = {event.session_hash for event in self.queue.event_ids_to_events.values()}
        busy = events | self.readers.keys() | self._unread.keys()
        for session in [name for name in self.queue.pending_messages_per_session if name not in busy]:
            self._remove(session)
        messages, events_of = self.queue.pending_messages_per_session, self.queue.pending_event_ids_session
        for session in [name for name in events_of if name not in messages]:
            del events_of[session]

    def _remove(self, session: str) -> None:
        self.queue.pending_messages_per_session.pop(session, None)
        self.queue.pending_event_ids_session.pop(session, None)
