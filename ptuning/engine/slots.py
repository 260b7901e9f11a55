"""The running rows, side by side: what the device knows of each, how one leaves, and what is left in a slot then.

Legend: A running rows, which have the slots 0 to A-1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from ptuning.engine.cache import SlotCache
from ptuning.engine.prefix_pool import PrefixPool, SharedPrefix
from ptuning.engine.sequence import Row
from ptuning.model.families.family import Family
from ptuning.model.positions import advance

logger = logging.getLogger(__name__)


class Slots:
    """The rows of the batch.

    Args:
        cache: their keys and values.
        bank: their prefixes.
        give_up: called with a row that cannot stay, and why.
        family: of the model; says what a further token adds to its K position ids.

    Attributes:
        rows: by slot.
        tokens: [R] the newest token of every row; ``columns``: [R] where it goes in the cache; ``positions``: [R, K] where
            it stands.
    """

    def __init__(
        self, cache: SlotCache, bank: PrefixPool, give_up: Callable[[Row, str], None], family: Family
    ) -> None:
        self.cache, self.bank, self.give_up, self.position_step = cache, bank, give_up, family.position_step
        self.rows: list[Row] = []
        self.tokens = torch.zeros(cache.max_rows, dtype=torch.long, device=cache.device)
        self.columns = torch.zeros_like(self.tokens)
        self.positions = torch.zeros(cache.max_rows, len(family.position_step), dtype=torch.long, device=cache.device)
        self._soiled: set[int] = set()  # free slots whose numbers may not be finite

    @property
    def prefixes(self) -> list[SharedPrefix | None]:
        """The prefix of every row."""
        return [row.generation.request.prefix for row in self.rows]

    def advance(self, slots: slice) -> None:
        """The positions of these rows move on by one token."""
        advance(self.positions[slots], self.position_step)

    def clean(self, count: int) -> None:
        """So many slots behind the rows hold finite numbers from here on."""
        behind = range(len(self.rows), len(self.rows) + count)
        for slot in self._soiled.intersection(behind[: max(0, self.cache.rows - len(self.rows))]):
            self.cache.wipe(slot)
        self._soiled.difference_update(behind)

    def give_back(self, count: int) -> None:
        """Prompts were not read into so many slots behind the rows after all, and their prefixes are not read either."""
        self._soiled.update(range(len(self.rows), len(self.rows) + count))
        self.bank.recount(self.prefixes)

    def let_go(self, gone: Sequence[bool]) -> None:
        """Free the slots of rows that ended; the last rows move into the holes, so that running rows stay together."""
        for slot in reversed([slot for slot, over in enumerate(gone) if over]):
            row = self.rows[slot]
            while slot < len(self.rows) - 1 and not self._fill(slot):
                self.give_up(self.rows[-1], "the memory of the answer could not be moved")
                self._leave(self.rows[-1])
            self._leave(row)

    def forget(self) -> None:
        """No row is there any more, and no numbers."""
        self.rows.clear()
        self._soiled.clear()
        self.cache.forget()
        try:
            self.bank.recount([])
        except Exception:
            logger.exception("the prefixes could not be put in order")

    def _fill(self, slot: int) -> bool:
        """The last row moves into the slot of one that ended; whether that worked, at the second try at the latest."""
        last = len(self.rows) - 1
        for _ in range(2):
            try:
                if self.rows[slot].generation.finish_reason == "error":
                    self.cache.wipe(slot)
                self.cache.move(last, slot, self.rows[last].columns)
                for state in (self.tokens, self.columns, self.positions):
                    state[slot] = state[last]
            except Exception:
                logger.exception("slot %d could not be moved", last)
            else:
                self.rows[slot] = self.rows[last]
                return True
        return False

    def _leave(self, row: Row) -> None:
        """A row that ended is no more: the last slot is free, and its prefix has a reader less."""
        last = self.rows.pop()
        if last is row and row.generation.finish_reason == "error":
            self._soiled.add(len(self.rows))
        try:
            self.bank.release(row.generation.request.prefix)
        except Exception:
            logger.exception("a prefix could not be released")
            self.bank.recount(self.prefixes)
