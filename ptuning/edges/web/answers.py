"""From a question on the page to its answer, piece by piece. Nothing here knows what the page looks like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from ptuning.core.characters import whole_characters
from ptuning.core.errors import QuestionTooLongError, UserError
from ptuning.edges.http.answer_queue import AnswerQueue, submit
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.web.sessions import Column, Note, PageSession, Pair, Run
from ptuning.engine.request import Generation, QueueFullError
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import Asked, ChatService, Question
from ptuning.serving.prefix_store import UnknownPrefixError
from ptuning.settings.arguments import AnswerArguments

HistoryUse = Literal["tuned", "always", "never"]
_WHOLE_NUMBERS = frozenset({"max_new_tokens", "top_k", "no_repeat_ngram_size", "seed"})
"""Settings that are whole numbers; page and API clients may send fractions."""
REFRESH_SECONDS = 0.04
"""Between two updates of the page: a browser draws no faster, and updates must not pile up behind a fast model."""
CHARACTERS_PER_TOKEN = 16
"""More than any text has on average: a question that is longer by this measure is rejected without being tokenized."""


@dataclass(frozen=True)
class AnswerOptions:
    """The choices of the page for one question.

    Attributes:
        names: of the prefix or base model; two of them answer side by side.
        settings: of :class:`AnswerArguments`, where they differ from the defaults.
        max_length: limit of prompt and answer together, in tokens; not among the settings, because the slider begins at 0.
        history: whether earlier rounds are part of the prompt; ``tuned``: as the prefix was tuned.
    """

    names: tuple[str | None, ...] = (None,)
    settings: Mapping[str, float] = field(default_factory=dict)
    max_length: float = 2048
    history: HistoryUse = "tuned"


class Answers:
    """Answers the questions of all page sessions.

    Args:
        service: already started.
        metrics: of the API at the same address.
    """

    def __init__(self, service: ChatService, metrics: Metrics) -> None:
        self.service, self.metrics = service, metrics
        self.max_characters = CHARACTERS_PER_TOKEN * service.engine.max_length
        """Limit of a question."""

    async def send(self, session: PageSession, query: str, options: AnswerOptions) -> AsyncIterator[None]:
        """Answer a question; yields whenever the session has something new to show. Nothing happens for an empty question,
        or while another one is being answered. Closing the iterator stops the answer within one step of the model."""
        if self.reject_too_long(session, query):
            yield
            return
        query = whole_characters(query).strip()
        if query and session.run is None:
            session.compare(len(options.names) > 1)
            async for _ in self._answer(session, query, options, _rounds_of(session)):
                yield

    def reject_too_long(self, session: PageSession, query: str) -> bool:
        """Whether a question is longer than any that can be answered; the session then has the error."""
        if len(query) <= self.max_characters or session.run is not None:
            return False
        session.error = "too_many_characters", (self.max_characters,)
        return True

    async def retry(self, session: PageSession, options: AnswerOptions) -> AsyncIterator[None]:
        """Ask the last question again: the new answer replaces the old one, which returns if there is no new one."""
        if session.run is None and session.columns[0].rounds:
            session.compare(len(options.names) > 1)
            before = _rounds_of(session)
            query = before[0][-1][0]
            for column in _columns(session):
                if column.rounds and column.rounds[-1][0] == query:
                    column.rounds = column.rounds[:-1]
            async for _ in self._answer(session, query, options, before, return_query=False):
                yield

    async def _answer(
        self, session: PageSession, query: str, options: AnswerOptions, before: list[list[Pair]], return_query: bool = True
    ) -> AsyncIterator[None]:
        """Submit the question for every column and follow the answers to their end.

        Args:
            session: of the page.
            query: the question.
            options: for its answers.
            before: the rounds of each column, restored where there is no answer.
            return_query: whether a question without an answer goes back to the input.
        """
        run = session.run = Run(query)
        columns = _columns(session)
        session.error = session.returned = None
        for column in columns:
            column.query, column.generation, column.notes = query, None, []
        try:
            yield
            queue = AnswerQueue(self.metrics)
            await self._submit(run, columns, options, queue)
            async for _ in queue.batches(len(columns)):
                if run.discarded:
                    return
                yield
                await asyncio.sleep(REFRESH_SECONDS)
        except (UserError, QueueFullError) as error:
            session.error = _error_note(error)
        finally:
            run.stop()
            if not run.discarded:
                _finish(session, run, columns, before, return_query)
        yield

    async def _submit(self, run: Run, columns: list[Column], options: AnswerOptions, queue: AnswerQueue) -> None:
        """Submit the question for all columns.

        Raises:
            UserError: it cannot be answered with these options.
            QueueFullError: too many requests are waiting already.
        """
        max_length = _whole_number("max_length", options.max_length)
        if max_length < 2:
            raise _NoRoomError(max_length)
        values = {
            name: _whole_number(name, value) if name in _WHOLE_NUMBERS else value for name, value in options.settings.items()
        }
        settings = AnswerArguments(**values)  # type: ignore[arg-type]
        sampling = SamplingParams.from_settings(**asdict(settings) | {"max_length": max_length})
        for column, name in zip(columns, options.names, strict=True):
            without_history = options.history == "never"
            if options.history == "tuned":
                without_history = self.service.store.get(name).single_round
            earlier = [] if without_history else [pair for pair in column.rounds if pair[1]]
            question = Question(run.query, earlier, name, sampling, stream=True)
            column.without_history = without_history and bool(column.rounds)
            asked = await submit(self.service, question, queue)
            run.add(asked)
            column.generation = asked.generations[0]


class _NoRoomError(UserError):
    """max_length leaves no room for an answer."""

    def __init__(self, max_length: int) -> None:
        super().__init__(f"max_length {max_length} was given; allowed is 2 or more")
        self.max_length = max_length


def _whole_number(name: str, value: float) -> int:
    """A number without a fraction, as an integer.

    Raises:
        UserError: it has a fraction, or is so large that a float cannot hold its last digits.
    """
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 2**53):
        raise UserError(f"{name} {value:g} was given; allowed are whole numbers")
    return int(value)


def _columns(session: PageSession) -> list[Column]:
    return list(session.columns[: 2 if session.comparing else 1])


def _rounds_of(session: PageSession) -> list[list[Pair]]:
    return [list(column.rounds) for column in _columns(session)]


def _finish(session: PageSession, run: Run, columns: list[Column], before: list[list[Pair]], return_query: bool) -> None:
    """End a run: answers, even unfinished ones, join their conversations; a question without any goes back to the input."""
    answered = False
    submitted = iter(run.asked)
    for column, rounds in zip(columns, before, strict=True):
        asked = next(submitted, None) if session.error is None else None
        if asked is not None:
            column.notes = _notes(asked, column.without_history)
        if asked is not None and _is_answer(asked.generations[0]):
            dropped = column.add(run.query, asked.generations[0].text)
            column.notes += [("forgotten", (dropped,))] if dropped else []
            answered = True
        else:
            column.rounds = rounds
        column.query = column.generation = None
    session.returned = None if answered or not return_query else run.query
    session.run = None


def _is_answer(generation: Generation) -> bool:
    """Whether a generation gave an answer: it did not fail, and was not stopped before its first character."""
    return generation.finish_reason != "error" and bool(generation.text or generation.finish_reason in ("stop", "length"))


def _notes(asked: Asked, without_history: bool) -> list[Note]:
    """The notes below an answer: who gave it, its tokens and speed, what was left out, and how it ended."""
    generation = asked.generations[0]
    if generation.finish_reason == "error":
        return [("failed", (generation.error or "",))]
    notes: list[Note] = [("by", (asked.prefix.name,))]
    tokens, first, last = len(generation.ids), generation.first_token, generation.finished
    if tokens > 1 and first is not None and last is not None and last > first:
        notes.append(("rate", (asked.prompt_tokens, tokens, (tokens - 1) / (last - first))))
    else:
        notes.append(("counts", (asked.prompt_tokens, tokens)))
    if without_history:
        notes.append(("without_history", ()))
    if asked.dropped_rounds:
        notes.append(("dropped", (asked.dropped_rounds,)))
    if generation.finish_reason == "length":
        notes.append(("truncated", ()))
    elif generation.finish_reason != "stop":
        notes.append(("stopped", ()))
    elif not generation.text:
        notes.append(("empty", ()))
    return notes


def _error_note(error: UserError | QueueFullError) -> Note:
    """The page's own text for the usual errors, the error's message for all others."""
    if isinstance(error, QueueFullError):
        return "busy", ()
    if isinstance(error, _NoRoomError):
        return "no_room", (error.max_length,)
    if isinstance(error, QuestionTooLongError):
        return "too_long", (error.tokens, error.limit)
    if isinstance(error, UnknownPrefixError):
        return "unknown", (str(error),)
    return "error", (str(error).removeprefix("--"),)
