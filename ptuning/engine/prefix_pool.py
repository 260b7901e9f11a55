"""Prefixes side by side: the keys and values of each stand here once, and every row of a batch reads its own.

Legend: A rows, M prefixes, P prefix slots, L layers, N heads, H head size, G prefixes of one read, Q rows of each.

Prefixes of one length lie one after the other in one tensor per layer, those in use first. A batch's queries are laid out
by prefix, [G, N, Q, H], and one attention over the tensor's view [G, N, P, H] serves them all: no prefix is copied, and
the rows of one prefix share its reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ptuning.model.prefix_encoder import PrefixKeyValues


class SharedPrefix:
    """A prefix in the pool, named by requests.

    Attributes:
        name: for people.
        length: P.
        position: its place in the pool of its length, which changes.
        rows: running rows that read it.
        removed: no new request may name it; its place is freed with the last row.
    """

    def __init__(self, name: str, length: int, position: int) -> None:
        self.name, self.length, self.position = name, length, position
        self.rows = 0
        self.removed = False


class Read(NamedTuple):
    """One attention over neighbouring prefixes: those from ``start`` to ``stop``, and the rows [G, Q] that ask each.

    Short groups are filled up with row 0. ``table`` is None where every row of the batch asks the one prefix.
    """

    start: int
    stop: int
    table: Tensor | None


class LengthPool:
    """All prefixes of one length P.

    Args:
        key_values: of the first one.
    """

    def __init__(self, key_values: PrefixKeyValues) -> None:
        self.entries: list[SharedPrefix] = []
        self.in_use = 0
        self.keys = [key[:0].clone() for key, _ in key_values]  # [M, N, P, H]
        self.values = [value[:0].clone() for _, value in key_values]
        self.length = key_values[0][0].shape[2]
        self._spare = torch.empty_like(key_values[0][0][0])  # so that prefixes change places without any new memory

    def add(self, name: str, key_values: PrefixKeyValues) -> SharedPrefix:
        """Copy a prefix in; the tensors grow by a quarter when they are full."""
        count = len(self.entries)
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                if len(tensor) == count:  # each for itself: memory may run out between two of them
                    grown = tensor.new_empty((count + max(1, count // 4), *tensor.shape[1:]))
                    grown[:count] = tensor
                    tensors[layer] = grown
        for layer, (key, value) in enumerate(key_values):
            self.keys[layer][count], self.values[layer][count] = key[0], value[0]
        self.entries.append(SharedPrefix(name, self.length, count))
        return self.entries[-1]

    def remove(self, entry: SharedPrefix) -> None:
        """Take a prefix out that no row reads; the last one moves into its place."""
        self._swap(entry.position, len(self.entries) - 1)
        self.entries.pop()

    def key_values(self, entry: SharedPrefix) -> PrefixKeyValues:
        """Views of one prefix, [1, N, P, H] each."""
        place = slice(entry.position, entry.position + 1)
        return tuple((key[place], value[place]) for key, value in zip(self.keys, self.values, strict=True))

    def acquire(self, entry: SharedPrefix) -> None:
        """One more row reads it; those that are read stand first.

        Raises:
            ValueError: it is no prefix of this pool, or no longer.
        """
        if entry.position >= len(self.entries) or self.entries[entry.position] is not entry:
            raise ValueError(f"the prefix {entry.name} is not loaded here")
        if entry.rows == 0:
            self._swap(entry.position, self.in_use)
            self.in_use += 1
        entry.rows += 1

    def release(self, entry: SharedPrefix) -> None:
        """One row less reads it."""
        entry.rows -= 1
        if entry.rows == 0:
            self.in_use -= 1
            self._swap(entry.position, self.in_use)
            if entry.removed:
                self.remove(entry)

    def reads(self, rows: Sequence[SharedPrefix | None]) -> tuple[list[Read], list[tuple[int, int]]]:
        """How the rows of a batch read this pool.

        Returns:
            the reads, and (row, place) for every row of this pool, places counted through the reads' [G, Q] in turn.
        """
        readers: list[list[int]] = [[] for _ in range(self.in_use)]
        for row, entry in enumerate(rows):
            if entry is not None and entry.length == self.length:
                readers[entry.position].append(row)
        reads: list[Read] = []
        places: list[tuple[int, int]] = []
        device, offset = self.keys[0].device, 0
        sizes = [len(group) for group in readers]
        for start, stop in (run for stretch in _stretches(sizes) for run in _runs(sizes, *stretch)):
            max_size = max(len(group) for group in readers[start:stop])
            filled = [group + [0] * (max_size - len(group)) for group in readers[start:stop]]
            whole = stop - start == 1 and len(filled[0]) == len(rows)
            reads.append(Read(start, stop, None if whole else torch.tensor(filled, device=device)))
            for number, group in enumerate(readers[start:stop]):
                places += [(row, offset + number * max_size + place) for place, row in enumerate(group)]
            offset += max_size * (stop - start)
        return reads, places

    def _swap(self, first: int, second: int) -> None:
        if first == second:
            return
        for tensor in (*self.keys, *self.values):
            self._spare.copy_(tensor[first])
            tensor[first] = tensor[second]
            tensor[second] = self._spare
        entries = self.entries
        entries[first], entries[second] = entries[second], entries[first]
        entries[first].position, entries[second].position = first, second


def _stretches(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of neighbouring prefixes that all have readers."""
    ends = [-1, *(place for place, size in enumerate(sizes) if size == 0), len(sizes)]
    return [(left + 1, right) for left, right in pairwise(ends) if right > left + 1]


def _runs(sizes: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
    """Neighbours that are read together. A group much larger than the others is read alone: they would all be filled up
    to its size."""
    if stop == start:
        return []
    max_size = max(sizes[start:stop])
    if stop - start == 1 or (stop - start) * max_size <= 2 * sum(sizes[start:stop]) + 8:
        return [(start, stop)]
    large = sizes.index(max_size, start, stop)
    return [*_runs(sizes, start, large), (large, large + 1), *_runs(sizes, large + 1, stop)]


class PrefixPool:
    """Prefixes of every length."""

    def __init__(self) -> None:
        self.by_length: dict[int, LengthPool] = {}

    def add(self, name: str, key_values: PrefixKeyValues) -> SharedPrefix:
        """Take a prefix in: per layer a key and a value [1, N, P, H]."""
        length = key_values[0][0].shape[2]
        if length not in self.by_length:
            self.by_length[length] = LengthPool(key_values)
        try:
            return self.by_length[length].add(name, key_values)
        finally:
            self._drop_empty()

    def remove(self, entry: SharedPrefix) -> None:
        """Take a prefix out, at once or with the last row that reads it."""
        if entry.removed:
            return
        entry.removed = True
        if entry.rows == 0:
            self.by_length[entry.length].remove(entry)
        self._drop_empty()

    def acquire(self, entry: SharedPrefix | None) -> None:
        """A row begins to read a prefix."""
        if entry is not None:
            if entry.length not in self.by_length:
                raise ValueError(f"the prefix {entry.name} is not loaded here")
            self.by_length[entry.length].acquire(entry)

    def release(self, entry: SharedPrefix | None) -> None:
        """A row ends."""
        if entry is not None:
            self.by_length[entry.length].release(entry)
            self._drop_empty()

    def recount(self, rows: Sequence[SharedPrefix | None]) -> None:
        """After a failure: set the readers to exactly these rows.

        Args:
            rows: the prefix of every running row.
        """
        for pool in self.by_length.values():
            for entry in list(pool.entries):
                readers = sum(prefix is entry for prefix in rows)
                while entry.rows < readers:
                    pool.acquire(entry)
                while entry.rows > readers:
                    pool.release(entry)
                if entry.removed and readers == 0 and entry in pool.entries:
                    pool.remove(entry)
        self._drop_empty()

    def _drop_empty(self) -> None:
        self.by_length = {length: pool for length, pool in self.by_length.items() if pool.entries}

    def key_values(self, entry: SharedPrefix | None) -> PrefixKeyValues | None:
        """Views of one prefix, or None for the base model."""
        return None if entry is None else self.by_length[entry.length].key_values(entry)
