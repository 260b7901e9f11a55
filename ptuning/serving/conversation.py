"""A conversation with one model and its prefixes: history, settings, and answers in pieces that never change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import Asked, ChatService, Question
from ptuning.serving.prefix_store import StoredPrefix
from ptuning.settings.arguments import AnswerArguments


@dataclass(frozen=True)
class Round:
    """A question and its answer.

    Attributes:
        earlier: rounds that stood before it when it was asked.
    """

    query: str
    reply: str
    earlier: tuple[tuple[str, str], ...] = ()


class Answer:
    """One answer on its way. Iterating gives its pieces; leaving the loop early stops the model within a token.

    Attributes:
        text: what was given out so far.
        asked: what the service says about it: tokens of the prompt, rounds that no longer fitted.
    """

    def __init__(self, conversation: Conversation, query: str, earlier: Sequence[tuple[str, str]], asked: Asked) -> None:
        self._conversation, self._query, self._earlier, self.asked = conversation, query, tuple(earlier), asked
        self._generation = asked.generations[0]
        self.text = ""

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it."""
        return self._generation.finish_reason == "length"

    def __iter__(self) -> Iterator[str]:
        """The pieces; the round joins the history at the end, as far as it was given out.

        Raises:
            GenerationError: the model gives no answer; the round is forgotten.
        """
        pieces, whole = self._generation.pieces(), False
        try:
            for piece in pieces:
                self.text += piece
                yield piece
            whole = self._generation.finish_reason in ("stop", "length")
        finally:
            pieces.close()  # type: ignore[attr-defined]  # it is a generator: closing it frees the row
            # An empty answer is one; an answer that was stopped before its first character is none.
            if whole or (self.text and self._generation.finish_reason != "error"):
                self._conversation.rounds.append(Round(self._query, self.text, self._earlier))


class Conversation:
    """One person talking to one model.

    Args:
        service: already answering.
        settings: how it answers; may be changed between questions.
        no_history: True asks every question on its own, False never does; None does what the prefix was tuned for.
    """

    def __init__(
        self, service: ChatService, settings: AnswerArguments | None = None, no_history: bool | None = None
    ) -> None:
        self.service, self.settings, self.no_history = service, settings or AnswerArguments(), no_history
        self.prefix_name = service.store.default
        self.rounds: list[Round] = []

    @property
    def prefix(self) -> StoredPrefix:
        """What answers: a prefix or the base model."""
        return self.service.store.get(self.prefix_name)

    @property
    def alone(self) -> bool:
        """Whether questions are asked without the rounds before them."""
        return self.prefix.single_round if self.no_history is None else self.no_history

    def select_prefix(self, name: str | None) -> StoredPrefix:
        """Another prefix answers from here on; None is the base model. The history stays.

        Raises:
            UserError: no such prefix.
        """
        prefix = self.service.store.get(self.service.store.base_name if name is None else name)
        self.prefix_name = prefix.name
        return prefix

    def change(self, **settings: object) -> None:
        """Change settings of the answers.

        Raises:
            UserError: a value out of range; nothing is changed then.
        """
        changed = replace(self.settings, **settings)  # type: ignore[arg-type]
        SamplingParams.from_settings(**asdict(changed))
        self.settings = changed

    def ask(self, query: str) -> Answer:
        """Put a question.

        Raises:
            UserError: a question that is too long, or a setting out of range.
        """
        earlier = [] if self.alone else [(turn.query, turn.reply) for turn in self.rounds]
        sampling = SamplingParams.from_settings(**asdict(self.settings))
        question = Question(query, earlier, self.prefix_name, sampling, stream=True)
        return Answer(self, query, earlier, self.service.ask(question))

    def clear(self) -> None:
        """Forget all rounds."""
        self.rounds.clear()

    def save(self, path: Path) -> int:
        """Write the rounds so that a prefix can be tuned on them: one JSON row a line with ``prompt``, ``response`` and
        ``history``, the rounds that stood before it when it was asked.

        Returns:
            how many.

        Raises:
            UserError: nothing was said yet, or the file cannot be written.
        """
        if not self.rounds:
            raise UserError("there is nothing to save yet")
        rows = [{"prompt": turn.query, "response": turn.reply, "history": turn.earlier} for turn in self.rounds]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            with replace_when_whole(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise UserError(
                f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); name another file"
            ) from None
        return len(rows)
