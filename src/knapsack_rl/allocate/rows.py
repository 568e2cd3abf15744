"""Read pass rates from CSV, JSON lines or Parquet. Every error names the place (``rates.csv:3``) and the value."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from knapsack_rl.beliefs.ids import id_text
from knapsack_rl.console.rows import ID_COLUMNS, SUFFIXES, Row, csv_rows, json_rows, number_in, shown
from knapsack_rl.notation import FloatArray

FORMATS = ("csv", "jsonl", "parquet")
RATE_COLUMNS = ("pass_rate", "p")
# What the command writes; in its input it is the result of an earlier call, and is replaced.
COUNT_COLUMN = "count"
# In place of a value that a row of JSON lacks.
ABSENT = object()


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pass rates of prompts.

    Attributes:
        prompt_ids: unique ids, ``[P]``; row numbers if the file has no id column.
        rates_P: observed success rates, ``[P]``; 0 without attempts.
        attempts_P: rollouts behind each rate, ``[P]``; 0 for a prompt never seen, infinite for an exact rate.
        columns: the other columns of the file by name, the rates among them, ``[P]`` each; ``ABSENT`` where a row has
            no such value.
    """

    prompt_ids: tuple[str, ...]
    rates_P: FloatArray
    attempts_P: FloatArray
    columns: Mapping[str, Sequence[object]] = field(default_factory=dict)


def read_evidence(data: bytes, name: str, file_format: str) -> Evidence:
    """Read a table of pass rates.

    The columns are ``successes`` and ``attempts``; or ``pass_rate`` (or ``p``), with ``attempts`` where known. Counts
    take precedence over a rate. An id column (``prompt_id`` or ``id``) is optional. All others are kept.

    Args:
        data: the file's content.
        name: its name in messages.
        file_format: one of ``FORMATS``.

    Raises:
        ValueError: no rows, missing columns, duplicate or empty ids, or a number out of range.
        ModuleNotFoundError: Parquet without pyarrow.
    """
    ids: dict[str, str] = {}
    rates, attempts = [], []
    columns: dict[str, list[object]] = {}
    for number, (where, row) in enumerate(_rows(data, name, file_format), start=1):
        id_column = next((column for column in ID_COLUMNS if column in row), None)
        prompt_id = str(number) if id_column is None else _id(where, row, id_column)
        if prompt_id in ids:
            raise ValueError(f"{where}: the id {shown(prompt_id)} also occurs at {ids[prompt_id]}")
        ids[prompt_id] = where
        rate, count = _rate(where, row)
        rates.append(rate)
        attempts.append(count)
        for column in row:
            if column not in columns and column not in (id_column, COUNT_COLUMN):
                columns[column] = [ABSENT] * (number - 1)
        for column, values in columns.items():
            values.append(row.get(column, ABSENT))
    if not ids:
        raise ValueError(f"{name} holds no rows: expected one per prompt")
    return Evidence(tuple(ids), np.array(rates), np.array(attempts), columns)


def detect_format(name: str, data: bytes) -> str:
    """Detect the format by the suffix of the name, else by the first characters of the content."""
    by_suffix = SUFFIXES.get(Path(name).suffix.lower())
    if by_suffix is not None:
        return by_suffix
    if data.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")) else "csv"


def text_of(data: bytes, name: str) -> str:
    """The text of a file.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _rows(data: bytes, name: str, file_format: str) -> Iterator[Row]:
    if file_format == "parquet":
        return _parquet_rows(data, name)
    return (json_rows if file_format == "jsonl" else csv_rows)(io.StringIO(text_of(data, name), newline=""), name)


def _parquet_rows(data: bytes, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
        names = table.column_names
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{name} is not a Parquet file: {error}") from error
    for column in names:
        if names.count(column) > 1:
            raise ValueError(f"{name}: the column {column!r} occurs twice: rename one")
    if not set(RATE_COLUMNS) & set(names) and not {"successes", "attempts"} <= set(names):
        _refuse_columns(name, names)
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield f"{name}, row {number}", dict(zip(names, cells, strict=True))


def _id(where: str, row: Mapping[str, object], column: str) -> str:
    value = row[column]
    try:
        found = "" if isinstance(value, dict | list) else id_text(value)
    except ValueError:  # nothing, or NaN
        found = ""
    if not found.strip():
        raise ValueError(f"{where}: {column} is {shown(value)}: give every prompt an id, or remove the column")
    return found


def _rate(where: str, row: Mapping[str, object]) -> tuple[float, float]:
    """The success rate of a row and the attempts behind it."""
    if "successes" in row and "attempts" in row:
        successes, attempts = _number(where, row, "successes"), _number(where, row, "attempts")
        if successes > attempts:
            raise ValueError(f"{where}: {successes:g} successes in {attempts:g} attempts")
        return (successes / attempts if attempts else 0.0), attempts
    for column in RATE_COLUMNS:
        if column in row:
            attempts = _number(where, row, "attempts") if "attempts" in row else math.inf
            # Without attempts there is no rate, and the cell is not read.
            return (_number(where, row, column, most=1.0) if attempts else 0.0), attempts
    _refuse_columns(where, list(row))
    raise AssertionError


def _refuse_columns(where: str, columns: Sequence[str]) -> None:
    raise ValueError(
        f"{where}: no column `pass_rate` (or `p`), nor both `successes` and `attempts`;"
        f" the columns are: {', '.join(columns) or 'none'}"
    )


def _number(where: str, row: Mapping[str, object], column: str, most: float = math.inf) -> float:
    """The number in a cell, checked to be finite and in [0, most]."""
    number = number_in(row[column])
    if number is None:
        raise ValueError(f"{where}: {column} is {shown(row[column])}, not a number")
    if not (0 <= number <= most and math.isfinite(number)):
        range_ = "in [0, 1]" if most == 1.0 else "finite and at least 0"
        value = row[column]
        raise ValueError(
            f"{where}: {column} is {value if isinstance(value, str) else shown(value)}: it must be {range_}"
        )
    return number
