"""What the server remembers of an open page: its conversation, side by side if wanted, and the answer that is being made."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from ptuning.edges.language import Language
from ptuning.engine.request import Generation
from ptuning.serving.chat_service import Asked

Pair = tuple[str, str]
Note = tuple[str, tuple[object, ...]]
"""A text of ``texts.py`` by its name, with its values: told in whatever language the page has when it is shown."""

MAX_PAGE_SESSIONS, KEPT_SECONDS = 2000, 3600.0
MAX_ROUNDS, MAX_CHARACTERS = 200, 500_000
"""Of one conversation: more than any model has in view, and no more than a page is drawn anew with 25 times a second."""


class Run:
    """One question on its way, to one model or to two.

    Attributes:
        query: the question.
        asked: one for each column, once the engine has them.
        stopped: somebody pressed stop, or went away.
        forgotten: the conversation was cleared meanwhile; what still comes belongs nowhere.
    """

    def __init__(self, query: str) -> None:
        self.query = query
        self.asked: list[Asked] = []
        self.stopped = self.forgotten = False

    def take(self, asked: Asked) -> None:
        """The engine has the question; a stop that came before holds."""
        self.asked.append(asked)
        if self.stopped:
            asked.cancel()

    def stop(self) -> None:
        """End it within one step."""
        self.stopped = True
        for one in self.asked:
            one.cancel()


@dataclass
class Column:
    """One conversation of the page.

    Attributes:
        rounds: (question, reply) pairs, oldest first.
        query: being answered now.
        generation: that answers it.
        alone: earlier rounds were left out of the question.
        notes: about the last answer.
    """

    rounds: list[Pair] = field(default_factory=list)
    query: str | None = None
    generation: Generation | None = None
    alone: bool = False
    notes: list[Note] = field(default_factory=list)

    def add(self, query: str, reply: str) -> int:
        """A round is over.

        Returns:
            how many of the oldest ones had to go for it.
        """
        rounds = [*self.rounds, (query, reply)]
        sizes = [len(question) + len(answer) for question, answer in rounds]
        gone = max(0, len(rounds) - MAX_ROUNDS)
        while gone < len(rounds) - 1 and sum(sizes[gone:]) > MAX_CHARACTERS:
            gone += 1
        self.rounds = rounds[gone:]
        return gone

    def shown(self) -> list[Pair]:
        """The rounds, the unfinished one last."""
        if self.query is None:
            return self.rounds
        return [*self.rounds, (self.query, self.generation.text if self.generation is not None else "")]


class PageSession:
    """One open page.

    Attributes:
        columns: the conversation, and the one beside it.
        comparing: whether both are in use.
        run: the question that is being answered.
        error: why the last one was not.
        returned: a question that goes back to the input, because nothing came of it.
        language: chosen on the page, or None.
        left: when the page was closed, if it was.
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
        """Side by side from here on, or no longer. The second column begins with what was said in the first."""
        if on and not self.comparing:
            self.columns[1].rounds = list(self.columns[0].rounds)
            self.columns[1].notes = []
        self.comparing = on

    def stop(self) -> None:
        """Stop the answer that runs."""
        if self.run is not None:
            self.run.stop()

    def clear(self) -> None:
        """Forget everything that was said; an answer that runs is stopped and belongs nowhere."""
        if self.run is not None:
            self.run.forgotten = True
            self.run.stop()
        self.run = self.error = self.returned = None
        self.columns = (Column(), Column())

    @property
    def worth(self) -> int:
        """How much would be lost with it: 3 an answer that runs, 2 a conversation, 1 a choice of language, 0 nothing."""
        if self.run is not None:
            return 3
        if any(column.rounds for column in self.columns):
            return 2
        return 1 if self.language is not None else 0


class SessionStore:
    """The open pages by gradio's name of their session. One that was left is kept for a while: its connection may only have
    been cut for a moment.

    Where there are too many, those go first in which nothing is lost: whoever opens thousands ends nobody's answer.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, PageSession] = OrderedDict()

    def of(self, session_hash: str | None) -> PageSession:
        """The session of a session; a new one where there is none. Nobody shares one that has no name."""
        if session_hash is None:
            return PageSession()
        session = self._sessions.setdefault(session_hash, PageSession())
        self._sessions.move_to_end(session_hash)
        session.left = None
        self._tidy()
        return session

    def leave(self, session_hash: str | None) -> None:
        """The page was closed or loaded anew: nobody waits for its answer any more."""
        session = self._sessions.get(session_hash or "")
        if session is not None:
            session.stop()
            session.left = time.monotonic()

    def _tidy(self) -> None:
        old = time.monotonic() - KEPT_SECONDS
        # The least recently used ones stand first, and the last one is being used now.
        gone = {name for name, session in self._sessions.items() if session.left is not None and session.left < old}
        while len(self._sessions) - len(gone) > MAX_PAGE_SESSIONS:
            others = [name for name in self._sessions if name not in gone][:-1]
            gone.add(min(others, key=lambda name: self._sessions[name].worth))
        for name in gone:
            self._sessions.pop(name).stop()

    def __len__(self) -> int:
        return len(self._sessions)
