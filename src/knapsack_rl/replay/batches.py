"""Rows of a table of rollouts as arrays, batch after batch: CSV and JSON lines row by row, Parquet through Polars.

A row is a prompt with a list of rewards (``prompt, rewards``) or a single rollout (``prompt, reward``); ``tokens`` and
``step`` may stand beside. Other columns, such as the answers themselves, are never loaded.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from knapsack_rl.ids import content_id
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rows import ID_COLUMNS, SUFFIXES, Row, csv_rows, json_rows

BATCH = 10_000
# Python's own limit of 128 kB is shorter than a long completion.
LONGEST_CELL = 1 << 30
# Longer "ids" are the prompts themselves; a hash of them names them as well and is kept instead.
LONGEST_ID = 64
# Token counts and steps are kept in 32 bits.
LARGEST = 2**31 - 1
PROMPT_COLUMNS = (*ID_COLUMNS, "prompt")
REWARD_COLUMNS = ("rewards", "reward")

# Where a row stands, for messages, and the cells of the columns that are read.
_Cells: TypeAlias = tuple[str, Sequence[object]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a table.

    Attributes:
        prompts: id of each row's prompt, ``[R]``; of a long one, a hash.
        sizes_R: rewards of each row, ``[R]``.
        rewards: all of them, row after row; NaN where there was no answer.
        tokens: their lengths, where known.
        steps_R: step of each row, where known.
    """

    prompts: Sequence[str]
    sizes_R: IntArray
    rewards: FloatArray
    tokens: IntArray | None
    steps_R: IntArray | None


def read_batches(path: Path, file_format: str | None = None) -> Iterator[Batch]:
    """The rows of a table, in order, without ever holding all of them.

    Args:
        path: the file.
        file_format: ``csv``, ``jsonl`` or ``parquet``; by default what the file's name says.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown format, missing columns, or a value that makes no sense; the message names the row.
        ModuleNotFoundError: Parquet without polars.
    """
    file_format = file_format or SUFFIXES.get(path.suffix.lower())
    if file_format == "parquet":
        return _parquet_batches(path)
    if file_format in ("csv", "jsonl"):
        return _text_batches(path, csv_rows if file_format == "csv" else json_rows)
    raise ValueError(f"{path}: a table is a .csv, .jsonl or .parquet file: say which it is with --format")


def _text_batches(path: Path, rows_of: Callable[[Iterable[str], str], Iterator[Row]]) -> Iterator[Batch]:
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = rows_of(file, str(path))
            first = next(rows, None)
            if first is None:
                return
            columns = _columns(first[0], list(first[1]))  # the first row decides which there are
            # One row at a time: what is not read, answers of megabytes perhaps, goes before the next row comes.
            cells = (_cells(columns, *row) for row in chain([first], rows))
            while (batch := _batch(columns, islice(cells, BATCH))).prompts:
                yield batch
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error


def _cells(columns: Sequence[str], where: str, row: Mapping[str, object]) -> _Cells:
    if missing := [name for name in columns if name not in row]:
        raise ValueError(f"{where}: no `{missing[0]}`, which the first row has")
    return where, [row[name] for name in columns]


def _parquet_batches(path: Path) -> Iterator[Batch]:
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
    """The columns that are read: whose rollouts, their rewards, and what may stand beside."""
    prompt = next((name for name in PROMPT_COLUMNS if name in names), None)
    reward = next((name for name in REWARD_COLUMNS if name in names), None)
    if prompt is None or reward is None:
        wanted = "`prompt` (or `prompt_id`, or `id`)" if prompt is None else "`rewards` (a list each) or `reward`"
        raise ValueError(f"{where}: no column {wanted}; the columns are: {', '.join(names) or 'none'}")
    return [prompt, reward, *(name for name in ("tokens", "step") if name in names)]


def _batch(columns: Sequence[str], rows: Iterable[_Cells]) -> Batch:
    prompts, sizes, rewards, tokens, steps = [], [], [], [], []
    for where, cells in rows:
        cell: dict[str, object] = dict(zip(columns, cells, strict=True))
        prompts.append(_prompt(where, columns[0], cells[0]))
        numbers = _numbers(where, columns[1], cells[1])
        sizes.append(len(numbers))
        rewards += numbers
        if "tokens" in cell:
            lengths = [_whole(where, "tokens", value) for value in _numbers(where, "tokens", cell["tokens"])]
            if len(lengths) != len(numbers):
                raise ValueError(f"{where}: {len(numbers)} rewards but {len(lengths)} token counts")
            tokens += lengths
        if "step" in cell:
            steps.append(_whole(where, "step", _number(where, "step", cell["step"])))
    return Batch(
        prompts,
        np.array(sizes, dtype=np.int64),
        np.array(rewards, dtype=np.float64),
        np.array(tokens, dtype=np.int64) if "tokens" in columns else None,
        np.array(steps, dtype=np.int64) if "step" in columns else None,
    )


def _prompt(where: str, column: str, cell: object) -> str:
    if cell is None or isinstance(cell, dict | list) or not str(cell).strip():
        raise ValueError(f"{where}: {column} is {cell!r}: every row needs to say whose rollouts it holds")
    prompt = str(cell)
    return prompt if len(prompt) <= LONGEST_ID else content_id(prompt)


def _numbers(where: str, column: str, cell: object) -> list[float]:
    """One number, or a list of them; a CSV cell holds a list as JSON."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(text := cell)
        except ValueError as error:
            raise ValueError(f"{where}: {column} is {text[:40]!r}, not a list of numbers: {error}") from None
    if isinstance(cell, list):
        return [_number(where, column, item) for item in cell]
    if column == "rewards":
        raise ValueError(f"{where}: rewards is {cell!r}, not a list of numbers (a single one goes under `reward`)")
    return [_number(where, column, cell)]


def _number(where: str, column: str, cell: object) -> float:
    """A finite number, or NaN for nothing."""
    if cell is None or cell == "":
        return math.nan
    try:
        if not isinstance(cell, str | int | float):
            raise TypeError
        number = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {column} is {cell!r}, not a number") from None
    if math.isinf(number):
        raise ValueError(f"{where}: {column} is {cell}: it must be finite")
    return number


def _whole(where: str, column: str, number: float) -> int:
    if not (0 <= number <= LARGEST and number == int(number)):
        raise ValueError(f"{where}: {column} is {number:g}: it must be a whole number from 0 to {LARGEST}")
    return int(number)
