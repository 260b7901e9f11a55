"""The running sequences side by side: which slot each has, how one leaves, and what its slot holds afterwards.

Legend: A running rows, which have the slots 0 to A-1.
"""

from __future__ import annotations

import logging
from collections import abc
from collections.abc import Callable

from ptuning.engine.prefix_pool import SharedPrefix
from ptuning.engine.runner import Runner
from ptuning.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Slots:
    """The rows of the batch.

    Args:
        runner: what the device keeps of them.
        on_lost: called with a sequence that was lost, and why.

    Attributes:
        sequences: by slot.
    """

    def __init__(self, runner: Runner, on_lost: Callable[[Sequence, str], None]) -> None:
        self.runner, self.on_lost = runner, on_lost
        self.sequences: list[Sequence] = []
        self._dirty: set[int] = set()  # free slots whose numbers may not be finite

    @property
    def prefixes(self) -> list[SharedPrefix | None]:
        """The prefix of every row."""
        return [sequence.generation.request.prefix for sequence in self.sequences]

    def reserve(self, newcomers: abc.Sequence[Sequence]) -> None:
        """Reserve the slots after the running rows: they hold finite numbers, and the prefixes are acquired."""
        new_slots = range(len(self.sequences), len(self.sequences) + len(newcomers))
        cache, pool = self.runner.cache, self.runner.prefix_pool
        for slot in self._dirty.intersection(new_slots[: max(0, cache.rows - len(self.sequences))]):
            cache.wipe(slot)
        self._dirty.difference_update(new_slots)
        for sequence in newcomers:
            pool.acquire(sequence.generation.request.prefix)

    def give_back(self, count: int) -> None:
        """Undo :meth:`reserve` for so many slots: their prompts could not be read, and their prefixes are released."""
        self._dirty.update(range(len(self.sequences), len(self.sequences) + count))
        self.runner.prefix_pool.recount(self.prefixes)

    def free(self, gone: abc.Sequence[bool]) -> None:
        """Free the slots of rows that ended; the last rows move into the holes, so that running rows stay together."""
        for slot in reversed([slot for slot, over in enumerate(gone) if over]):
            sequence = self.sequences[slot]
            while slot < len(self.sequences) - 1 and not self._fill(slot):
                self.on_lost(self.sequences[-1], "the memory of the answer could not be moved")
                self._leave(self.sequences[-1])
            self._leave(sequence)

    def forget(self) -> None:
        """No row is there any more, and no numbers."""
        self.sequences.clear()
        self._dirty.clear()
        self.runner.cache.forget()
        try:
            self.runner.prefix_pool.recount([])
        except Exception:
            logger.exception("the prefixes could not be put in order")

    def _fill(self, slot: int) -> bool:
        """The last row moves into the slot of one that ended; whether that worked, at the second try at the latest."""
        last = len(self.sequences) - 1
        for _ in range(2):
            try:
                if self.sequences[slot].generation.finish_reason == "error":
                    self.runner.cache.wipe(slot)
                self.runner.move(last, slot, self.sequences[last].columns)
            except Exception:
                logger.exception("slot %d could not be moved", last)
            else:
                self.sequences[slot] = self.sequences[last]
                return True
        return False

    def _leave(self, sequence: Sequence) -> None:
        """A row that ended is no more: the last slot is free, and its prefix has a reader less."""
        last = self.sequences.pop()
        if last is sequence and sequence.generation.finish_reason == "error":
            self._dirty.add(len(self.sequences))
        try:
            self.runner.prefix_pool.release(sequence.generation.request.prefix)
        except Exception:
            logger.exception("a prefix could not be released")
            self.runner.prefix_pool.recount(self.prefixes)
