"""From a question on the page to its answer, piece by piece. Nothing here knows how a page looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from ptuning.core.characters import whole_characters
from ptuning.core.errors import QuestionTooLongError, UserError
from ptuning.edges.http.answer_queue import AnswerQueue, ask
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.web.sessions import Column, Note, PageSession, Pair, Run
from ptuning.engine.request import Generation, QueueFullError
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import Asked, ChatService, Question
from ptuning.serving.prefix_store import UnknownPrefixError
from ptuning.settings.arguments import AnswerArguments

HistoryUse = Literal["tuned", "always", "never"]
_WHOLE = frozenset({"max_new_tokens", "top_k", "no_repeat_ngram_size", "seed"})
"""Settings that are whole numbers; a page and whoever calls it like one may send any."""
PAUSE = 0.04
"""Seconds between two looks at an answer: a browser shows no more, and a fast model must not run ahead of it."""
CHARACTERS_PER_TOKEN = 16
"""More than any text has on the average: a question that is longer by this measure is refused before it is looked into."""


@dataclass(frozen=True)
class AnswerOptions:
    """How the page wants to be answered.

    Attributes:
        names: of the prefix or base model; two of them answer side by side.
        settings: those of :class:`AnswerArguments` that are not as published.
        max_length: prompt and answer together, in tokens; told apart, as the slider begins at 0.
        history: tuned: as the prefix was tuned, with or without earlier rounds.
    """

    names: tuple[str | None, ...] = (None,)
    settings: Mapping[str, float] = field(default_factory=dict)
    max_length: float = 2048
    history: HistoryUse = "tuned"


class Answers:
    """Answers for every session.

    Args:
        service: already answering.
        metrics: of the API beside it.
    """

    def __init__(self, service: ChatService, metrics: Metrics) -> None:
        self.service, self.metrics = service, metrics
        self.max_characters = CHARACTERS_PER_TOKEN * service.engine.max_length
        """Of a question."""

    async def send(self, session: PageSession, query: str, options: AnswerOptions) -> AsyncIterator[None]:
        """Ask; yields whenever the session has something new to show. An empty question does nothing, nor does one while
        another is being answered. Closing the iterator stops the answer within one step."""
        if self.refuses(session, query):
            yield
            return
        query = whole_characters(query).strip()
        if query and session.run is None:
            session.compare(len(options.names) > 1)
            async for _ in self._answered(session, query, options, _rounds_of(session)):
                yield

    def refuses(self, session: PageSession, query: str) -> bool:
        """Whether a question is longer than any that can be answered; the session says so then."""
        if len(query) <= self.max_characters or session.run is not None:
            return False
        session.error = "too_many_characters", (self.max_characters,)
        return True

    async def retry(self, session: PageSession, options: AnswerOptions) -> AsyncIterator[None]:
        """Ask the last question again: the new answer takes the place of the old one, which comes back if there is none."""
        if session.run is None and session.columns[0].rounds:
            session.compare(len(options.names) > 1)
            before = _rounds_of(session)
            query = before[0][-1][0]
            for column in _columns(session):
                if column.rounds and column.rounds[-1][0] == query:
                    column.rounds = column.rounds[:-1]
            async for _ in self._answered(session, query, options, before, returning=False):
                yield

    async def _answered(
        self, session: PageSession, query: str, options: AnswerOptions, before: list[list[Pair]], returning: bool = True
    ) -> AsyncIterator[None]:
        """Ask for every column and follow the answers to their end."""
        run = session.run = Run(query)
        columns = _columns(session)
        session.error = session.returned = None
        for column in columns:
            column.query, column.generation, column.notes = query, None, []
        try:
            yield
            inbox = AnswerQueue(self.metrics)
            await self._ask(run, columns, options, inbox)
            async for _ in inbox.bunches(len(columns)):
                if run.forgotten:
                    return
                yield
                await asyncio.sleep(PAUSE)
        except (UserError, QueueFullError) as error:
            session.error = _error_note(error)
        finally:
            run.stop()
            if not run.forgotten:
                _settle(session, run, columns, before, returning)
        yield

    async def _ask(self, run: Run, columns: list[Column], options: AnswerOptions, inbox: AnswerQueue) -> None:
        """All columns or none: two answers are compared only where both are made under the same conditions.

        Raises:
            UserError: something that no answer can come of.
            QueueFullError: too many wait already.
        """
        max_length = _whole("max_length", options.max_length)
        if max_length < 2:
            raise _NoRoomError(max_length)
        given = {name: _whole(name, value) if name in _WHOLE else value for name, value in options.settings.items()}
        settings = AnswerArguments(**given)  # type: ignore[arg-type]
        sampling = SamplingParams.from_settings(**asdict(settings) | {"max_length": max_length})
        for column, name in zip(columns, options.names, strict=True):
            alone = options.history == "never"
            if options.history == "tuned":
                alone = self.service.store.get(name).single_round
            earlier = [] if alone else [pair for pair in column.rounds if pair[1]]
            question = Question(run.query, earlier, name, sampling, stream=True)
            column.alone = alone and bool(column.rounds)
            asked = await ask(self.service, question, inbox)
            run.take(asked)
            column.generation = asked.generations[0]


class _NoRoomError(UserError):
    """max_length leaves no token for an answer."""

    def __init__(self, given: int) -> None:
        super().__init__(f"max_length {given} was given; allowed is 2 or more")
        self.given = given


def _whole(name: str, value: float) -> int:
    """A number without a fraction.

    Raises:
        UserError: it has one, or is so large that it has lost its last digits.
    """
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 2**53):
        raise UserError(f"{name} {value:g} was given; allowed are whole numbers")
    return int(value)


def _columns(session: PageSession) -> list[Column]:
    return list(session.columns[: 2 if session.comparing else 1])


def _rounds_of(session: PageSession) -> list[list[Pair]]:
    return [list(column.rounds) for column in _columns(session)]


def _settle(session: PageSession, run: Run, columns: list[Column], before: list[list[Pair]], returning: bool) -> None:
    """It is over: an answer joins its conversation, as far as it was given; a question that got none goes back."""
    answered = False
    asked = iter(run.asked)
    for column, rounds in zip(columns, before, strict=True):
        made = next(asked, None) if session.error is None else None
        if made is not None:
            column.notes = _notes(made, column.alone)
        if made is not None and _is_answer(made.generations[0]):
            gone = column.add(run.query, made.generations[0].text)
            column.notes += [("forgotten", (gone,))] if gone else []
            answered = True
        else:
            column.rounds = rounds
        column.query = column.generation = None
    session.returned = None if answered or not returning else run.query
    session.run = None


def _is_answer(generation: Generation) -> bool:
    """Not one that was stopped before its first character, nor one that failed."""
    return generation.finish_reason != "error" and bool(generation.text or generation.finish_reason in ("stop", "length"))


def _notes(asked: Asked, alone: bool) -> list[Note]:
    """What there is to say about an answer: how it ended, what was left out, and what it cost."""
    generation = asked.generations[0]
    if generation.finish_reason == "error":
        return [("failed", (generation.error or "",))]
    notes: list[Note] = [("by", (asked.prefix.name,))]
    tokens, first, last = len(generation.ids), generation.first_token, generation.finished
    if tokens > 1 and first is not None and last is not None and last > first:
        notes.append(("rate", (asked.prompt_tokens, tokens, (tokens - 1) / (last - first))))
    else:
        notes.append(("counts", (asked.prompt_tokens, tokens)))
    if alone:
        notes.append(("alone", ()))
    if asked.dropped_rounds:
        notes.append(("dropped", (asked.dropped_rounds,)))
    if generation.finish_reason == "length":
        notes.append(("cut", ()))
    elif generation.finish_reason != "stop":
        notes.append(("stopped", ()))
    elif not generation.text:
        notes.append(("empty", ()))
    return notes


def _error_note(error: UserError | QueueFullError) -> Note:
    """The usual mistakes in the page's own words, the others in the service's."""
    if isinstance(error, QueueFullError):
        return "busy", ()
    if isinstance(error, _NoRoomError):
        return "no_room", (error.given,)
    if isinstance(error, QuestionTooLongError):
        return "too_long", (error.tokens, error.limit)
    if isinstance(error, UnknownPrefixError):
        return "unknown", (str(error),)
    return "error", (str(error).removeprefix("--"),)
