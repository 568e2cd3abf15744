"""Rows of the training data set: their numbers, their ids, and the candidates that a generation batch offers.

A task is a row. A row has a number where the data set can be indexed, so that one row that is offered twice is known
from two rows that are equal. What is believed belongs to its id (`knapsack_rl.beliefs.ids`), which equal rows share.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from knapsack_rl.beliefs.ids import ID_COLUMN, row_id
from knapsack_rl.trl.sampler import candidate_rows

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# The key under which a row carries its number through the data loader: a key, and no attribute, because accelerate
# builds rows anew when it moves them to a device. After that it is the number of a `NumberedRow`.
ROW_NUMBER = "knapsack_row_number"


class NumberedRow(dict[str, Any]):
    """A row as the data set has it, and its number in it."""

    def __init__(self, row: Mapping[str, Any], number: int | None) -> None:
        """Make it of a row and its number, None in a stream."""
        super().__init__(row)
        self.number = number


def numbered(row: Any) -> Any:
    """The row of a data loader without the key of its number, which becomes an attribute; others as they are."""
    if not isinstance(row, Mapping) or ROW_NUMBER not in row:
        return row
    return NumberedRow({name: value for name, value in row.items() if name != ROW_NUMBER}, row[ROW_NUMBER])


def number_of(row: Mapping[str, Any]) -> int | None:
    """The number of a row in its data set; None in a stream."""
    return row.number if isinstance(row, NumberedRow) else None


class Candidate(NamedTuple):
    """A row that is offered: its number (None in a stream), its id, and its prompt."""

    number: int | None
    prompt_id: str
    prompt: Any


class NumberedRows(torch.utils.data.Dataset[Row]):
    """A data set whose rows carry their number."""

    def __init__(self, rows: Any) -> None:
        """Number the rows of a data set that can be indexed."""
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return {**self.rows[number], ROW_NUMBER: number}

    def __getitems__(self, numbers: list[int]) -> list[Row]:
        """Several rows in one access, as data loaders ask for them."""
        together = getattr(self.rows, "__getitems__", None)
        rows = together(numbers) if together is not None else [self.rows[number] for number in numbers]
        return [{**row, ROW_NUMBER: number} for row, number in zip(rows, numbers, strict=True)]


class RowIds:
    """Makes the ids of a data set's rows.

    Where a data set is formatted (``with_transform``, ``with_format``), the id is that of the stored row: a transform
    may draw at random, and formats change types.
    """

    def __init__(self, dataset: Any, whole: bool = True) -> None:
        """Make ids of the rows of ``dataset``; of the stored ones as well if those that come are not ``whole``."""
        given = getattr(dataset, "format", None) or {}
        self._stored = dataset if hasattr(dataset, "__len__") and not whole else None
        if isinstance(given, Mapping) and given.get("type") not in (None, "python"):
            columns = None if given.get("output_all_columns") else given.get("columns")
            self._stored = dataset.with_format(None, columns=columns)
        self._left_out: set[str] = set()

    def __call__(self, row: Mapping[str, Any], version: int) -> str:
        """The id of a row, by this version of the rule.

        Raises:
            ValueError: an empty ``prompt_id``.
        """
        number = number_of(row)
        if self._stored is not None and number is not None and ID_COLUMN not in row and version > 1:
            row = self._stored[number]
        known = len(self._left_out)
        found = row_id(row, version=version, left_out=self._left_out)
        if len(self._left_out) > known:
            logger.warning(
                "no id can be made of the values in %s: rows that differ only there share a belief; give every row a "
                "%s to keep them apart",
                ", ".join(sorted(self._left_out)),
                ID_COLUMN,
            )
        return found


def candidates(
    rows: Sequence[Row], first_row: int, group_size: int, pool: int, id_of: Callable[[Row], str]
) -> list[tuple[Candidate, Row]]:
    """Return the candidates that begin among these rows, each with its first row, and check the order of the rows.

    Args:
        rows: consecutive rows of a generation batch, those of this process.
        first_row: position of ``rows[0]`` in the whole batch.
        group_size: rows per group.
        pool: candidates that share the rows of a group.
        id_of: makes the id of a row.

    Raises:
        ValueError: different rows of the data set in one candidate, so that the rows do not come from our sampler.
    """
    # The row before the first one shows whether a candidate begins at the first one or on another process.
    number = candidate_rows(np.arange(first_row - 1, first_row + len(rows)), group_size, pool)
    begins = number[1:] != number[:-1]
    # A row in a stream has no number, and is told from others by its id.
    numbers = [number_of(row) for row in rows]
    ids = {i: id_of(row) for i, row in enumerate(rows) if begins[i] or numbers[i] is None}
    same = [ids[i] if number is None else number for i, number in enumerate(numbers)]
    for i in range(1, len(rows)):
        if not begins[i] and same[i] != same[i - 1]:
            shared = f"group of {group_size}" if pool == 1 else f"of the {pool} candidates in a group of {group_size}"
            raise ValueError(
                f"rows {first_row + i - 1} and {first_row + i} of a batch belong to one {shared} but are rows "
                f"{same[i - 1]!r} and {same[i]!r} of the data set: leave the train sampler to TRL"
            )
    return [
        (Candidate(numbers[i], ids[i], rows[i].get("prompt")), dict(rows[i])) for i in np.flatnonzero(begins).tolist()
    ]


def distinct(offered: Iterable[Candidate]) -> list[int]:
    """Positions of the candidates without those that repeat a row: a pool meets a row twice where two passes join."""
    first: dict[int, int] = {}
    return [
        i for i, each in enumerate(offered) if each.number is None or first.setdefault(each.number, i) == i
    ]  # fmt: skip


def texts_of(offered: Iterable[Candidate]) -> dict[str, Any]:
    """Prompts by id, for the trace; without those that an environment makes."""
    return {each.prompt_id: each.prompt for each in offered if each.prompt is not None}


def fresh(row: Row) -> Row:
    """A copy of a row, because rollout functions and environments write into it; what cannot be copied is shared."""
    try:
        return copy.deepcopy(row)
    except Exception:  # whatever the values of a user's transform raise: locks, generators, open files
        return {name: _copied(value) for name, value in row.items()}


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # as above
        return value
