"""The server's memory of the open pages: each has a session with its conversation and the answer in progress."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from ptuning.edges.language import Language
from ptuning.engine.request import Generation
from ptuning.serving.chat_service import Asked

Pair = tuple[str, str]
Note = tuple[str, tuple[object, ...]]
"""Name and values of a text in ``texts.py``, which is written in the page's language when it is shown."""

MAX_PAGE_SESSIONS, KEPT_SECONDS = 2000, 3600.0
"""Sessions that are kept, and how long after the page was closed."""
MAX_ROUNDS, MAX_CHARACTERS = 200, 500_000
"""Of one conversation: more than any model has in its context, and no more than a page can redraw 25 times a second."""


class Run:
    """One question being answered, by one model or by two.

    Attributes:
        query: the question.
        asked: one for each column, once the engine has the question.
        stopped: the user pressed stop or closed the page.
        discarded: the conversation was cleared meanwhile; the answer is shown nowhere.
    """

    def __init__(self, query: str) -> None:
        self.query = query
        self.asked: list[Asked] = []
        self.stopped = self.discarded = False

    def add(self, asked: Asked) -> None:
        """The engine has accepted the question for one more column; it is cancelled if the run was stopped before."""
        self.asked.append(asked)
        if self.stopped:
            asked.cancel()

    def stop(self) -> None:
        """Stop the answers within one step of the model."""
        self.stopped = True
        for asked in self.asked:
            asked.cancel()


@dataclass
class Column:
    """One conversation on the page.

    Attributes:
        rounds: (question, reply) pairs, oldest first.
        query: the question that is being answered.
        generation: its answer so far.
        without_history: the question was asked without the earlier rounds.
        notes: about the last answer.
    """

    rounds: list[Pair] = field(default_factory=list)
    query: str | None = None
    generation: Generation | None = None
    without_history: bool = False
    notes: list[Note] = field(default_factory=list)

    def add(self, query: str, reply: str) -> int:
        """Add a finished round.

        Returns:
            how many of the oldest rounds were dropped to stay within the limits.
        """
        rounds = [*self.rounds, (query, reply)]
        sizes = [len(question) + len(answer) for question, answer in rounds]
        dropped = max(0, len(rounds) - MAX_ROUNDS)
        while dropped < len(rounds) - 1 and sum(sizes[dropped:]) > MAX_CHARACTERS:
            dropped += 1
        self.rounds = rounds[dropped:]
        return dropped

    def shown(self) -> list[Pair]:
        """All rounds, with the unfinished one last."""
        if self.query is None:
            return self.rounds
        return [*self.rounds, (self.query, self.generation.text if self.generation is not None else "")]


class PageSession:
    """The session of one open page.

    Attributes:
        columns: the conversation, and the second one beside it.
        comparing: whether both are in use.
        run: the question that is being answered, if any.
        error: why the last question was not answered.
        returned: a question without an answer, which goes back to the input.
        language: chosen on the page, or None.
        left: when the page was closed, or None.
        ended: when its last stream ended.
    """

    def __init__(self) -> None:
        self.columns = (Column(), Column())
        self.comparing = False
        self.run: Run | None = None
        self.error: Note | None = None
        self.returned: str | None = None
        self.language: Language | None = None
        self.left: float | None = None
        self.ended = 0.0

    def compare(self, on: bool) -> None:
        """Switch the second column on or off. It begins with a copy of the first one's rounds."""
        if on and not self.comparing:
            self.columns[1].rounds = list(self.columns[0].rounds)
            self.columns[1].notes = []
        self.comparing = on

    def stop(self) -> None:
        """Stop the answer in progress, if there is one."""
        if self.run is not None:
            self.run.stop()

    def clear(self) -> None:
        """Forget the conversation; an answer in progress is stopped and discarded."""
        if self.run is not None:
            self.run.discarded = True
            self.run.stop()
        self.run = self.error = self.returned = None
        self.columns = (Column(), Column())

    @property
    def value(self) -> int:
        """What would be lost with the session: 3 an answer in progress, 2 a conversation, 1 a chosen language, 0 nothing."""
        if self.run is not None:
            return 3
        if any(column.rounds for column in self.columns):
            return 2
        return 1 if self.language is not None else 0


class SessionStore:
    """The sessions of all open pages, by gradio's session hash.

    The session of a closed page is kept for a while, because its connection may only have been interrupted. Where there are
    too many sessions, those of least value go first: opening thousands of pages ends nobody's answer.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, PageSession] = OrderedDict()

    def get(self, session_hash: str | None) -> PageSession:
        """The session of a page, created where there is none; without a hash a new one that is not kept."""
        if session_hash is None:
            return PageSession()
        session = self._sessions.setdefault(session_hash, PageSession())
        self._sessions.move_to_end(session_hash)
        session.left = None
        self._evict()
        return session

    def leave(self, session_hash: str | None) -> None:
        """The page was closed or reloaded: stop its answer, and start the time after which it is forgotten."""
        session = self._sessions.get(session_hash or "")
        if session is not None:
            session.stop()
            session.left = time.monotonic()

    def _evict(self) -> None:
        expired = time.monotonic() - KEPT_SECONDS
        # Least recently used sessions come first; the last one is the one in use.
        evicted = {name for name, session in self._sessions.items() if session.left is not None and session.left < expired}
        while len(self._sessions) - len(evicted) > MAX_PAGE_SESSIONS:
            others = [name for name in self._sessions if name not in evicted][:-1]
            evicted.add(min(others, key=lambda name: self._sessions[name].value))
        for name in evicted:
            self._sessions.pop(name).stop()

    def __len__(self) -> int:
        return len(self._sessions)
