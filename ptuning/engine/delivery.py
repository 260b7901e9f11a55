"""From tokens to whoever asked: text, pieces, the end. What goes wrong here is one request's own, and ends it alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ptuning.engine.isolation import reason_of
from ptuning.engine.request import FinishReason, Generation
from ptuning.engine.sampler import BROKEN
from ptuning.engine.sequence import Counters, Row

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

    def accept(self, row: Row, token: int, end_ids: frozenset[int]) -> bool:
        """Give a row its next token; returns whether that ended it. Raises nothing of the row's own."""
        try:
            return self._accept(row, token, end_ids)
        except BaseException as error:  # noqa: BLE001  # see _own
            self._own(error)
            self.end(row, "error", reason_of(error))
            return True

    def end(self, row: Row, reason: FinishReason, error: str | None = None) -> None:
        """A row's generation is over: the rest of its text, and the news. Raises nothing of the row's own."""
        if row.text is not None and row.generation.finish_reason is None:
            try:
                row.generation.tell(row.text.end())
            except BaseException as failure:  # noqa: BLE001  # see _own
                self._own(failure)
                if reason != "error":
                    reason, error = "error", reason_of(failure)
            if row.text.stopped and reason == "length":  # the stop text stood in what was held back
                reason = "stop"
        self.finish(row.generation, reason, error)

    def finish(self, generation: Generation, reason: FinishReason, error: str | None = None) -> None:
        """A generation is over, if it was not. Raises nothing of its own."""
        if generation.finish_reason is not None:
            return
        self.counters.finished[reason] += 1
        try:
            generation.finish(reason, error)
        except BaseException as failure:  # noqa: BLE001  # see _own
            self._own(failure)

    def _accept(self, row: Row, token: int, end_ids: frozenset[int]) -> bool:
        generation = row.generation
        if generation.first_token is None:
            generation.mark_first_token()
        if token == BROKEN:
            self.end(row, "error", _NOT_FINITE)
            return True
        if token in end_ids:
            self.end(row, "stop")
            return True
        generation.ids.append(token)
        row.choice.add(token)
        self.counters.generated_tokens += 1
        if row.text is not None:
            generation.tell(row.text.add(token))
            if row.text.stopped:
                self.end(row, "stop")
                return True
        if len(generation.ids) >= row.limit:
            self.end(row, "length")
            return True
        return False

    def _own(self, error: BaseException) -> None:
        """Log what one request did wrong; what is meant for the program is raised again."""
        if not isinstance(error, Exception) and not self.driven():
            raise error
        logger.error("an answer failed", exc_info=error)
