"""Tables of recorded rollouts, in 12 to 20 bytes a rollout: CSV and JSON lines read row by row, Parquet with Polars.

A row is a prompt with a list of rewards (``prompt, rewards``) or a single rollout (``prompt, reward``); the columns
``tokens`` and ``step`` are optional. Other columns, such as the completions, are not kept.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from knapsack_arena.replay.rollouts import RecordedRollouts, RecordedStep, shuffle_within
from knapsack_rl.beliefs.ids import content_id, id_text, prompt_keys
from knapsack_rl.beliefs.prompt_store import KeyIndex
from knapsack_rl.console.rows import ID_COLUMNS, SUFFIXES, Row, csv_rows, json_rows, number_in, shown
from knapsack_rl.files import parse_json
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes

BATCH = 10_000
# Python's default limit of 128 kB is shorter than a long completion.
LONGEST_CELL = 1 << 30
# Longer "ids" are prompt texts: a hash is kept in their place.
LONGEST_ID = 64
# Token counts and steps are kept in 32 bits.
LARGEST = 2**31 - 1
PROMPT_COLUMNS = (*ID_COLUMNS, "prompt")
REWARD_COLUMNS = ("rewards", "reward")

# Place of a row, for messages, and the cells of the columns that are read.
_Cells: TypeAlias = tuple[str, Sequence[object]]


@dataclass(frozen=True, eq=False)
class TableRows:
    """Consecutive rows of a table.

    Attributes:
        prompts: id of each row's prompt, ``[R]``; a hash of a long one.
        sizes_R: number of rewards of each row, ``[R]``.
        rewards: rewards of all rows, row after row; NaN for a rollout without an answer.
        tokens: completion lengths in tokens, as ``rewards``, where known.
        steps_R: step of each row, where known.
    """

    prompts: Sequence[str]
    sizes_R: IntArray
    rewards: FloatArray
    tokens: IntArray | None
    steps_R: IntArray | None


@dataclass(frozen=True, eq=False)
class Table:
    """Recorded rollouts in the order of the file.

    Attributes:
        prompt_ids: different prompts, in order of first appearance.
        prompt_R: position of each rollout's prompt, ``[R]``.
        rewards_R: its reward, ``[R]``; NaN for a rollout without an answer.
        tokens_R: its completion length in tokens, where known, ``[R]``.
        step_R: its generation step, where known, ``[R]``.
    """

    prompt_ids: tuple[str, ...]
    prompt_R: NDArray[np.int32]
    rewards_R: NDArray[np.float32]
    tokens_R: NDArray[np.int32] | None
    step_R: NDArray[np.int32] | None

    def rollouts(self, seed: int, success_threshold: float) -> RecordedRollouts:
        """All rollouts, shuffled within each prompt by the seed."""
        order = shuffle_within(self.prompt_R, seed)
        sizes_P = np.bincount(self.prompt_R, minlength=len(self.prompt_ids)).astype(np.int64)
        tokens = None if self.tokens_R is None else self.tokens_R[order]
        return RecordedRollouts(self.prompt_ids, sizes_P, self.rewards_R[order], tokens, None, success_threshold)

    def steps(self, success_threshold: float) -> Iterator[RecordedStep]:
        """Yield the steps of a table with a column ``step``, in order; groups in order of first appearance.

        Raises:
            ValueError: the table has no steps.
        """
        if self.step_R is None:
            raise ValueError("the table has no column `step`")
        order = np.argsort(self.step_R, kind="stable")
        edges = np.flatnonzero(np.diff(self.step_R[order])) + 1
        for rows in np.split(order, edges):
            yield self._step(rows, success_threshold)

    def _step(self, rows: IntArray, success_threshold: float) -> RecordedStep:
        assert self.step_R is not None
        _, first, group = np.unique(self.prompt_R[rows], return_index=True, return_inverse=True)
        rank = np.empty_like(first)
        rank[np.argsort(first)] = np.arange(first.size)
        rows = rows[np.argsort(rank[group], kind="stable")]
        sizes_P = np.bincount(rank[group]).astype(np.int64)
        firsts = rows[np.cumsum(sizes_P) - sizes_P]
        outcomes = Outcomes(
            step=int(self.step_R[rows[0]]),
            prompt_ids=tuple(self.prompt_ids[i] for i in self.prompt_R[firsts].tolist()),
            counts_P=sizes_P,
            rewards_PG=self.rewards_R[rows].astype(np.float64),
            tokens_PG=None if self.tokens_R is None else self.tokens_R[rows].astype(np.int64),
            success_threshold=success_threshold,
        )
        unknown = np.full(sizes_P.size, np.nan)
        return RecordedStep(outcomes, int(sizes_P.sum()), sizes_P, unknown, unknown)


def read_table(path: Path, file_format: str | None = None) -> Table:
    """Read a table of recorded rollouts, without ever holding all of its rows.

    Raises:
        As `read_batches`.
        ValueError: no rollouts.
    """
    index = KeyIndex()
    ids: list[str] = []
    prompts, rewards, tokens, steps = [], [], [], []
    for batch in read_batches(path, file_format):
        rows = index.add(prompt_keys(batch.prompts))
        for row, prompt in zip(rows.tolist(), batch.prompts, strict=True):
            if row == len(ids):
                ids.append(prompt)
        prompts.append(np.repeat(rows, batch.sizes_R).astype(np.int32))
        rewards.append(batch.rewards.astype(np.float32))
        if batch.tokens is not None:
            tokens.append(batch.tokens.astype(np.int32))
        if batch.steps_R is not None:
            steps.append(np.repeat(batch.steps_R, batch.sizes_R).astype(np.int32))
    if not any(part.size for part in rewards):
        raise ValueError("the table holds no rollouts")
    return Table(
        tuple(ids),
        np.concatenate(prompts),
        np.concatenate(rewards),
        np.concatenate(tokens) if tokens else None,
        np.concatenate(steps) if steps else None,
    )


def read_batches(path: Path, file_format: str | None = None) -> Iterator[TableRows]:
    """Read the rows of a table in order, in batches of ``BATCH``.

    Args:
        path: the file.
        file_format: ``csv``, ``jsonl`` or ``parquet``; by default by the suffix of its name.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown format, missing columns, or an invalid value; the message names the row.
        ModuleNotFoundError: Parquet without polars.
    """
    file_format = file_format or SUFFIXES.get(path.suffix.lower())
    if file_format == "parquet":
        return _parquet_batches(path)
    if file_format in ("csv", "jsonl"):
        return _text_batches(path, csv_rows if file_format == "csv" else json_rows)
    raise ValueError(f"{path}: a table is a .csv, .jsonl or .parquet file: say which it is with --format")


def _text_batches(path: Path, rows_of: Callable[[Iterable[str], str], Iterator[Row]]) -> Iterator[TableRows]:
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = rows_of(file, str(path))
            first = next(rows, None)
            if first is None:
                return
            columns = _columns(first[0], list(first[1]))  # those of the first row; later rows must have them too
            # One row at a time: unread cells, completions of megabytes perhaps, are freed before the next row is read.
            cells = (_cells(columns, *row) for row in chain([first], rows))
            while (batch := _batch(columns, islice(cells, BATCH))).prompts:
                yield batch
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error


def _cells(columns: Sequence[str], where: str, row: Mapping[str, object]) -> _Cells:
    if missing := [name for name in columns if name not in row]:
        raise ValueError(f"{where}: no `{missing[0]}`, which the first row has")
    return where, [row[name] for name in columns]


def _parquet_batches(path: Path) -> Iterator[TableRows]:
    import polars as pl

    try:
        lazy = pl.scan_parquet(path, glob=False)
        columns = _columns(str(path), lazy.collect_schema().names())
        start = 1
        for frame in lazy.select(columns).collect_batches(chunk_size=BATCH, maintain_order=True):
            rows = enumerate(frame.iter_rows(), start)
            yield _batch(columns, ((f"{path}, row {number}", row) for number, row in rows))
            start += frame.height
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error


def _columns(where: str, names: Sequence[str]) -> list[str]:
    """The columns that are read: prompt, rewards, and the optional ones that exist."""
    prompt = next((name for name in PROMPT_COLUMNS if name in names), None)
    reward = next((name for name in REWARD_COLUMNS if name in names), None)
    if prompt is None or reward is None:
        wanted = "`prompt` (or `prompt_id`, or `id`)" if prompt is None else "`rewards` (a list each) or `reward`"
        raise ValueError(f"{where}: no column {wanted}; the columns are: {', '.join(names) or 'none'}")
    return [prompt, reward, *(name for name in ("tokens", "step") if name in names)]


def _batch(columns: Sequence[str], rows: Iterable[_Cells]) -> TableRows:
    prompts, sizes, rewards, tokens, steps = [], [], [], [], []
    for where, cells in rows:
        cell: dict[str, object] = dict(zip(columns, cells, strict=True))
        prompts.append(_prompt(where, columns[0], cells[0]))
        numbers = _numbers(where, columns[1], cells[1])
        sizes.append(len(numbers))
        rewards += numbers
        if "tokens" in cell:
            lengths = [_checked_int(where, "tokens", value) for value in _numbers(where, "tokens", cell["tokens"])]
            if len(lengths) != len(numbers):
                raise ValueError(f"{where}: {len(numbers)} rewards but {len(lengths)} token counts")
            tokens += lengths
        if "step" in cell:
            steps.append(_checked_int(where, "step", _number(where, "step", cell["step"])))
    return TableRows(
        prompts,
        np.array(sizes, dtype=np.int64),
        np.array(rewards, dtype=np.float64),
        np.array(tokens, dtype=np.int64) if "tokens" in columns else None,
        np.array(steps, dtype=np.int64) if "step" in columns else None,
    )


def _prompt(where: str, column: str, cell: object) -> str:
    if isinstance(cell, list) and cell:  # a chat: the id that a trace of ours would have
        try:
            return content_id(cell)
        except TypeError as error:
            raise ValueError(f"{where}: {column} cannot be hashed ({error}): add a column prompt_id") from error
    if cell is None or isinstance(cell, dict | list) or not str(cell).strip():
        raise ValueError(f"{where}: {column} is {shown(cell)}: every row needs a prompt or its id")
    prompt = cell if isinstance(cell, str) else id_text(cell)
    return prompt if len(prompt) <= LONGEST_ID else content_id(prompt)


def _numbers(where: str, column: str, cell: object) -> list[float]:
    """The numbers of a cell: one, or a list of them, which a CSV cell holds as JSON."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = parse_json(text := cell)
        except ValueError as error:
            raise ValueError(f"{where}: {column} is {text[:40]!r}, not a list of numbers: {error}") from None
    if isinstance(cell, list):
        return [_number(where, column, item) for item in cell]
    if column == "rewards":
        raise ValueError(f"{where}: rewards is {cell!r}, not a list of numbers (a single one goes under `reward`)")
    return [_number(where, column, cell)]


def _number(where: str, column: str, cell: object) -> float:
    """A finite number; NaN for an empty cell."""
    if cell is None or cell == "":
        return math.nan
    number = number_in(cell)
    if number is None:
        raise ValueError(f"{where}: {column} is {shown(cell)}, not a number")
    if math.isinf(number):
        raise ValueError(f"{where}: {column} is {cell if isinstance(cell, str) else shown(cell)}: it must be finite")
    return number


def _checked_int(where: str, column: str, number: float) -> int:
    if not (0 <= number <= LARGEST and number == int(number)):
        raise ValueError(f"{where}: {column} is {number:g}: it must be a whole number from 0 to {LARGEST}")
    return int(number)
