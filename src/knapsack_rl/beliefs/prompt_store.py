"""Store a row of numbers per prompt: a struct of arrays, indexed by a hash of the prompt id."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.beliefs.ids import KeyArray, prompt_keys
from knapsack_rl.files import BeliefFileError, SavedToFile, State, check_kind, saved_array, write_state
from knapsack_rl.notation import FloatArray, IntArray, checked_step

# Largest share of slots in use. Keys have 64 bits: the probability that any two of 10 million prompts have the same key
# is 3 in a million; two such prompts would share a belief.
_MAX_LOAD = 0.65
_CHUNK = 1 << 20


class PromptTable:
    """Columns of numbers, one row per prompt. Prompts are added when first observed and never removed.

    Attributes:
        lock: to be held while columns are read or written, because growing replaces the arrays.
    """

    def __init__(self, columns: Mapping[str, DTypeLike]) -> None:
        """Create an empty table with these columns; new rows are 0."""
        self.lock = threading.RLock()
        self._index = KeyIndex()
        self._columns = {name: np.zeros(64, dtype=dtype) for name, dtype in columns.items()}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, column: str) -> NDArray[Any]:
        """Return a column as a view, ``[len(self)]``; writing to it writes to the table."""
        return self._columns[column][: len(self)]

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the lock, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.RLock())

    def rows(self, prompt_ids: Sequence[str]) -> IntArray:
        """Find the row of each prompt, ``[P]``; -1 for unknown prompts."""
        return self._index.rows(prompt_keys(prompt_ids))

    def add(self, prompt_ids: Sequence[str]) -> IntArray:
        """Find the row of each prompt, ``[P]``, after adding rows for unknown prompts."""
        rows = self._index.add(prompt_keys(prompt_ids))
        for name, column in self._columns.items():
            if column.size < len(self):
                wider = np.zeros(grown(len(self)), dtype=column.dtype)
                wider[: column.size] = column
                self._columns[name] = wider
        return rows

    def steps_since_observed(self, rows: IntArray, step: int) -> IntArray:
        """Steps since each prompt was last observed (column ``step``), or since step 0 if it never was, ``[P]``."""
        last = np.zeros(rows.size, dtype=np.int64)  # not the column's 32 bits, which a later step may exceed
        last[rows >= 0] = self["step"][rows[rows >= 0]]
        steps: IntArray = np.maximum(checked_step(step) - last, 0)
        return steps

    def mean_tokens(self, rows: IntArray) -> FloatArray:
        """Expected completion lengths in tokens (column ``tokens``), ``[P]``; NaN where unknown."""
        tokens = np.full(rows.size, np.nan)
        stored = self["tokens"][rows[rows >= 0]]
        tokens[rows >= 0] = np.where(stored > 0, stored, np.nan)
        return tokens

    def observe_tokens(self, rows: IntArray, groups: IntArray, tokens: FloatArray) -> None:
        """Update column ``tokens`` to the average of its value and the new mean length, or to the latter if unknown.

        Args:
            rows: rows of the table, each once, ``[R]``.
            groups: index into ``rows`` of each group, ``[G]``.
            tokens: mean completion length of each group in tokens, ``[G]``; NaN where unknown. Unknown is stored as 0.
        """
        known = ~np.isnan(tokens)
        known_groups = np.bincount(groups[known], minlength=rows.size)
        new = np.bincount(groups[known], weights=tokens[known], minlength=rows.size) / np.maximum(known_groups, 1)
        old = self["tokens"][rows]
        mean = np.where(old > 0, (old + new) / 2, new)
        self["tokens"][rows] = np.where(known_groups > 0, mean, old)

    def state_dict(self, copy: bool = True) -> State:
        """Return keys and columns; without ``copy`` as views, which must be written before the table changes."""
        arrays = {"keys": self._index.keys, **{name: self[name] for name in self._columns}}
        return {name: array.copy() if copy else array for name, array in arrays.items()}

    def read_state(self, state: Mapping[str, Any]) -> PromptTable:
        """Build a new table with these columns from saved state; this one is not changed.

        Raises:
            BeliefFileError: a column is missing, of another type, of another length, negative or not finite.
        """
        keys = saved_array(state, "keys", np.uint64, (None,))
        in_order = np.sort(keys)  # `np.unique` takes twenty times as long for ten million keys
        if (in_order[1:] == in_order[:-1]).any():
            raise BeliefFileError("the saved keys repeat: restore the file, or delete it to start without")
        del in_order
        columns = {name: saved_array(state, name, a.dtype, keys.shape) for name, a in self._columns.items()}
        for name, column in columns.items():
            if column.size and column.min() < 0:
                raise BeliefFileError(f"the saved column {name!r} is negative: restore the file")
        table = PromptTable({})
        table._index, table._columns, table.lock = KeyIndex(keys), columns, self.lock
        return table


class TableBeliefs(SavedToFile):
    """Base class of beliefs that store a `PromptTable`: state, saved and restored under the table's lock.

    Attributes:
        table: a row of numbers per prompt.
        header: kind and settings, which saved state must have in order to be restored.
    """

    table: PromptTable

    @property
    def header(self) -> Mapping[str, object]:
        """Kind and settings that saved state must have."""
        raise NotImplementedError(f"{type(self).__name__} must define `header`: the kind of its saved state")

    def state_dict(self, copy: bool = True) -> State:
        """Return everything learned, as arrays and plain values; without ``copy`` arrays are views of the table."""
        with self.table.lock:
            return {**self.header, "prompts": self.table.state_dict(copy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another kind, or damaged.
        """
        check_kind(state, **self.header)
        prompts = state.get("prompts")
        with self.table.lock:
            self.table = self.table.read_state(prompts if isinstance(prompts, Mapping) else {})

    def save(self, path: Path | str) -> None:
        """Write everything learned to a file, all or nothing."""
        with self.table.lock:
            write_state(path, self.state_dict(copy=False))


class KeyIndex:
    """Map 64-bit keys to row numbers, in 8 bytes per key and 4 per slot (a Python dict takes about 100 bytes).

    Open addressing with linear probing, vectorised over the keys of a call. Keys are hashes, used without rehashing.
    """

    def __init__(self, keys: KeyArray | None = None) -> None:
        """Build an index of ``keys``, whose rows are their positions; empty by default."""
        self._size = 0 if keys is None else keys.size
        self._keys = np.zeros(grown(self._size), dtype=np.uint64)
        self._keys[: self._size] = 0 if keys is None else keys
        self._fill_slots(self._size)

    def __len__(self) -> int:
        return self._size

    @property
    def keys(self) -> KeyArray:
        """The keys in the order of rows, ``[len(self)]``."""
        return self._keys[: self._size]

    def rows(self, keys: KeyArray) -> IntArray:
        """Find the row of each key, ``[P]``; -1 for unknown keys."""
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
        """Find the row of each key, ``[P]``; unknown keys get the next rows, in order of first appearance."""
        rows = self.rows(keys)
        unknown = keys[rows < 0]
        if unknown.size:
            new = unknown[np.sort(np.unique(unknown, return_index=True)[1])]
            start, self._size = self._size, self._size + new.size
            if self._size > self._keys.size:
                wider = np.zeros(grown(self._size), dtype=np.uint64)
                wider[:start] = self._keys[:start]
                self._keys = wider
            self._keys[start : self._size] = new
            if self._size > _MAX_LOAD * self._slots.size:
                self._fill_slots(self._size)
            else:
                self._insert(self._slots, start, self._size)
            rows = self.rows(keys)
        return rows

    def _fill_slots(self, size: int) -> None:
        """Build a new slot table for all keys, whose size is a power of two."""
        slots = np.full(max(128, 1 << int(size / _MAX_LOAD).bit_length()), -1, dtype=np.int32)
        self._insert(slots, 0, size)
        self._slots = slots  # assigned when complete, because another thread may be reading

    def _insert(self, table: NDArray[np.int32], start: int, stop: int) -> None:
        """Insert the keys of rows ``start..stop - 1`` into a slot table."""
        mask = table.size - 1
        for begin in range(start, stop, _CHUNK):  # in chunks, to bound temporary memory
            rows = np.arange(begin, min(begin + _CHUNK, stop), dtype=np.int32)
            slots = (self._keys[rows] & np.uint64(mask)).astype(np.int64)
            while rows.size:
                free = table[slots] < 0
                table[slots[free]] = rows[free]  # if several rows have the same slot, the last one gets it
                unplaced = table[slots] != rows
                rows, slots = rows[unplaced], (slots[unplaced] + 1) & mask


def grown(size: int) -> int:
    """Capacity for ``size`` rows with one eighth to spare, so that growing takes amortised constant time per row."""
    return size + size // 8 + 64
