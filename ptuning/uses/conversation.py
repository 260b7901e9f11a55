"""A conversation with one model: history, settings, and answers as pieces that never change once shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ptuning.plain.response import settled


@dataclass
class Conversation:
    """One person talking to one model.

    Attributes:
        model: a :class:`~ptuning.tuned.model.ChatGLMForConditionalGeneration`.
        tokenizer: of the model.
        settings: keywords of ``model.chat`` (max_length, top_p, temperature, …).
        keep_history: False asks every question on its own, as a prefix tuned on single questions expects.
        history: rounds so far.
    """

    model: Any
    tokenizer: Any
    settings: dict[str, Any] = field(default_factory=dict)
    keep_history: bool = True
    history: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, query: str) -> Iterator[str]:
        """Answer a query in pieces; their sum is the reply. Closing the iterator stops the model.

        A reply that was stopped is kept in the history as far as it was shown.
        """
        shown, text = "", ""
        history = self.history if self.keep_history else []
        stream = self.model.stream_chat(self.tokenizer, query, history, **self.settings)
        try:
            for text, _ in stream:
                ready = settled(text)
                if len(ready) > len(shown):
                    piece, shown = ready[len(shown) :], ready
                    yield piece
            if len(text) > len(shown):
                piece, shown = text[len(shown) :], text
                yield piece
        finally:
            stream.close()
            if self.keep_history and shown:
                self.history.append((query, shown))

    def clear(self) -> None:
        """Forget all rounds."""
        self.history.clear()
