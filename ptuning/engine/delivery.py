"""From tokens to the caller: text, pieces, the end. A failure here concerns one request, and ends it alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ptuning.engine.isolation import reason_of
from ptuning.engine.request import FinishReason, Generation
from ptuning.engine.sampler import BROKEN
from ptuning.engine.sequence import Counters, Sequence

logger = logging.getLogger(__name__)

_NOT_FINITE = (
    "the scores of a token are NaN or infinite: the weights or the prefix are damaged, or the number format is too narrow "
    "for them. Try --dtype bfloat16 or float32; if it stays, take an earlier checkpoint"
)


class Delivery:
    """Hands on what the engine makes.

    Args:
        driven: whether a thread of its own drives the engine. Ctrl-C does not reach it, so whatever is raised there is a
            failure of the request; elsewhere it may be meant for the program.

    Attributes:
        counters: of the engine.
    """

    def __init__(self, driven: Callable[[], bool]) -> None:
        self.driven = driven
        self.counters = Counters()

    def accept(self, sequence: Sequence, token: int, end_ids: frozenset[int]) -> bool:
        """Give a sequence its next token; returns whether that ended it. Raises nothing of its own."""
        try:
            return self._accept(sequence, token, end_ids)
        except BaseException as error:  # noqa: BLE001  # see _own
            self._own(error)
            self.end(sequence, "error", reason_of(error))
            return True

    def end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """A sequence is over: the rest of its text, and the news. Raises nothing of its own."""
        if sequence.text is not None and sequence.generation.finish_reason is None:
            try:
                sequence.generation.tell(sequence.text.end())
            except BaseException as failure:  # noqa: BLE001  # see _own
                self._own(failure)
                if reason != "error":
                    reason, error = "error", reason_of(failure)
            if sequence.text.stopped and reason == "length":  # the stop text stood in what was held back
                reason = "stop"
        self.finish(sequence.generation, reason, error)

    def finish(self, generation: Generation, reason: FinishReason, error: str | None = None) -> None:
        """A generation is over, if it was not. Raises nothing of its own."""
        if generation.finish_reason is not None:
            return
        self.counters.finished[reason] += 1
        try:
            generation.finish(reason, error)
        except BaseException as failure:  # noqa: BLE001  # see _own
            self._own(failure)

    def _accept(self, sequence: Sequence, token: int, end_ids: frozenset[int]) -> bool:
        generation = sequence.generation
        if generation.first_token is None:
            generation.mark_first_token()
        if token == BROKEN:
            self.end(sequence, "error", _NOT_FINITE)
            return True
        if token in end_ids:
            self.end(sequence, "stop")
            return True
        generation.ids.append(token)
        sequence.sampler.add(token)
        self.counters.generated_tokens += 1
        if sequence.text is not None:
            generation.tell(sequence.text.add(token))
            if sequence.text.stopped:
                self.end(sequence, "stop")
                return True
        if len(generation.ids) >= sequence.limit:
            self.end(sequence, "length")
            return True
        return False

    def _own(self, error: BaseException) -> None:
        """Log the failure of one request; exceptions meant for the program are raised again."""
        if not isinstance(error, Exception) and not self.driven():
            raise error
        logger.error("an answer failed", exc_info=error)
