"""What goes into the engine and what comes out: a request, and the generation it becomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from ptuning.core.errors import GenerationError, UserError
from ptuning.engine.sampling_params import GREEDY, SamplingParams
from ptuning.model.families import family_of

if TYPE_CHECKING:
    from ptuning.engine.prefix_pool import SharedPrefix

FinishReason = Literal["stop", "length", "cancelled", "error"]
Listener = Callable[["Generation", str], None]
"""Called by the thread that drives the engine with every new piece of text, and with "" once when it is over."""


class QueueFullError(RuntimeError):
    """More requests wait than the engine takes; the same request may be welcome a little later."""


@dataclass(frozen=True)
class Request:
    """One prompt to be answered.

    Attributes:
        prompt_ids: ending in ``[gMASK] <sop>``.
        prefix: of :meth:`Engine.add_prefix`; None is the base model.
        sampling: how the answer is drawn and where it ends.
        stream: whether text is delivered while it is generated.
    """

    prompt_ids: list[int]
    prefix: SharedPrefix | None = None
    sampling: SamplingParams = GREEDY
    stream: bool = False

    def check(self, config: Any, context: int) -> None:
        """Refuse a prompt that a model cannot read.

        Args:
            config: of the model.
            context: limit of prompt and answer together.

        Raises:
            UserError: ids that are no prompt, or too many; a prefix that was unloaded.
        """
        ids, limit = self.prompt_ids, self.sampling.context_limit(context)
        family_of(config).check_prompt(config, ids)
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise UserError(f"an id of the prompt is outside the model's vocabulary of {config.vocab_size}")
        if self.prefix is not None and self.prefix.removed:
            raise UserError(f"the prefix {self.prefix.name} was unloaded")
        if len(ids) >= limit:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the limit of prompt and answer is {limit}: shorten the "
                "question or its history"
            )


@dataclass(eq=False)
class Generation:
    """A request on its way: waiting, running, finished.

    Attributes:
        request: the prompt and its settings.
        index: place among the requests of one call.
        ids: generated so far, without ``<eop>``.
        finish_reason: None until it is over. stop: the model or a stop text ended it; length: a limit did.
        error: what went wrong, where the reason is ``error``.
        submitted, first_token, finished: times of ``time.perf_counter``.
    """

    request: Request
    index: int = 0
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    submitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    finished: float | None = None
    listener: Listener | None = None
    cancelled: bool = False
    _text: str | None = None
    _decode: Callable[[list[int]], str] | None = None
    _over: Event = field(default_factory=Event)
    _pieces: SimpleQueue[str | None] | None = None

    @property
    def text(self) -> str:
        """The answer as a chat shows it (while it is made: what will not change any more, if streamed).

        Raises:
            GenerationError: the tokenizer cannot make a text of it.
        """
        if self._text is None and self.finish_reason is not None and self._decode is not None:
            try:
                self._text = self._decode(self.ids)
            except Exception as error:
                raise GenerationError(f"the tokenizer cannot make a text of the answer: {error}") from error
        return self._text or ""

    def cancel(self) -> None:
        """End it within one step, from any thread. What was made so far stays."""
        self.cancelled = True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is over (somebody else drives the engine); False when the time is up."""
        return self._over.wait(timeout)

    def raise_for_error(self) -> None:
        """Raise :class:`GenerationError` where this generation ended in one."""
        if self.finish_reason == "error":
            raise GenerationError(self.error or "the model gave no answer")

    def pieces(self) -> Iterator[str]:
        """The answer piece by piece while somebody else drives the engine; joined they are ``text``.

        Closing the iterator cancels the generation. Only for requests with ``stream`` and no listener of their own.

        Raises:
            GenerationError: the model's scores were not finite.
        """
        if self._pieces is None:
            raise UserError("this request was not made with stream=True, or its text goes to a listener")
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
            self.raise_for_error()
        finally:
            self.cancel()

    def mark_first_token(self) -> None:
        """The first token is there (the engine's thread)."""
        self.first_token = time.perf_counter()

    def tell(self, piece: str) -> None:
        """Hand a piece of text on (the engine's thread). An empty one says that the text so far is the text, be it "" as
        where a stop text stands at the very beginning."""
        self._text = (self._text or "") + piece
        if piece:
            if self._pieces is not None:
                self._pieces.put(piece)
            if self.listener is not None:
                self.listener(self, piece)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """It is over (the engine's thread); only the first time counts."""
        if self.finish_reason is not None:
            return
        self.error, self.finished, self.finish_reason = error, time.perf_counter(), reason
        if self._pieces is not None:
            self._pieces.put(None)
        self._over.set()
        if self.listener is not None:
            self.listener(self, "")
