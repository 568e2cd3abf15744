"""Prompts have stable names: what they are called, and where their belief is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import IntArray

KeyArray = NDArray[np.uint64]

# Keys are compared 64 bits wide: two of 10 million prompts share one with a chance of 3 in a million, and would then
# share a belief, which harms nobody.
_MOST_FULL = 0.65
_CHUNK = 1 << 20


def content_id(content: object) -> str:
    """A stable id for a prompt that has none: a hash of its content (text, or a list of chat messages).

    Raises:
        TypeError: content that JSON cannot express; such prompts need an id of their own.
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def prompt_keys(prompt_ids: Sequence[str]) -> KeyArray:
    """64-bit keys of prompt ids, ``[P]``; the same on every machine and in every process."""
    digests = b"".join([blake2b(prompt_id.encode(), digest_size=8).digest() for prompt_id in prompt_ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


class KeyIndex:
    """Key -> row number, in 8 bytes a key and about 6 a slot: a Python dict would take some 100.

    Open addressing with linear probing, all keys of a call at once; the keys are hashes already.
    """

    def __init__(self, keys: KeyArray | None = None) -> None:
        """An index of ``keys``, whose rows are their positions; empty by default."""
        self._size = 0 if keys is None else keys.size
        self._keys = np.zeros(grown(self._size), dtype=np.uint64)
        self._keys[: self._size] = 0 if keys is None else keys
        self._fill_slots(self._size)

    def __len__(self) -> int:
        return self._size

    @property
    def keys(self) -> KeyArray:
        """The keys in row order, ``[len(self)]``."""
        return self._keys[: self._size]

    def rows(self, keys: KeyArray) -> IntArray:
        """Row of each key, -1 where unknown; ``[P]``."""
        rows = np.full(keys.size, -1, dtype=np.int64)
        mask = np.uint64(self._slots.size - 1)
        pending, slots = np.arange(keys.size), (keys & mask).astype(np.int64)
        while pending.size:
            found = self._slots[slots]
            hit = (found >= 0) & (self._keys[found] == keys[pending])
            rows[pending[hit]] = found[hit]
            on = ~hit & (found >= 0)
            pending, slots = pending[on], (slots[on] + 1) & int(mask)
        return rows

    def add(self, keys: KeyArray) -> IntArray:
        """Row of each key; unknown ones are given the next rows, in order of first appearance."""
        rows = self.rows(keys)
        unknown = keys[rows < 0]
        if unknown.size:
            fresh = unknown[np.sort(np.unique(unknown, return_index=True)[1])]
            start, self._size = self._size, self._size + fresh.size
            if self._size > self._keys.size:
                wider = np.zeros(grown(self._size), dtype=np.uint64)
                wider[:start] = self._keys[:start]
                self._keys = wider
            self._keys[start : self._size] = fresh
            if self._size > _MOST_FULL * self._slots.size:
                self._fill_slots(self._size)
            else:
                self._insert(start, self._size)
            rows = self.rows(keys)
        return rows

    def _fill_slots(self, size: int) -> None:
        """A new slot table, a power of two in size, with all keys in it."""
        self._slots = np.full(max(128, 1 << int(size / _MOST_FULL).bit_length()), -1, dtype=np.int32)
        self._insert(0, size)

    def _insert(self, start: int, stop: int) -> None:
        mask = self._slots.size - 1
        for begin in range(start, stop, _CHUNK):  # in chunks, so that the scratch space stays small
            rows = np.arange(begin, min(begin + _CHUNK, stop), dtype=np.int32)
            slots = (self._keys[rows] & np.uint64(mask)).astype(np.int64)
            while rows.size:
                free = self._slots[slots] < 0
                self._slots[slots[free]] = rows[free]  # of several rows that want a slot, one gets it
                lost = self._slots[slots] != rows
                rows, slots = rows[lost], (slots[lost] + 1) & mask


def grown(size: int) -> int:
    """Capacity for ``size`` rows: an eighth to spare, so that growing stays cheap and the waste small."""
    return size + size // 8 + 64
