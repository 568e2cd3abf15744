"""The rows of tables that a user names: CSV with any usual delimiter, JSON lines or a JSON array; numbers in cells.

Every error names the place (``rates.csv:3``) and the value.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain
from typing import TypeAlias

from knapsack_rl.files import parse_json

SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip
ID_COLUMNS = ("prompt_id", "id")
# Columns that some command reads: the right delimiter is the one that finds most of them.
KNOWN_COLUMNS = (
    *ID_COLUMNS, "pass_rate", "p", "successes", "attempts", "count", "prompt", "rewards", "reward", "tokens", "step",
)  # fmt: skip
DELIMITERS = ",;\t"
# Python's default limit of 128 kB is shorter than a long completion.
LONGEST_CELL = 1 << 30

# Where a row stands, for messages, and its cells by column.
Row: TypeAlias = tuple[str, Mapping[str, object]]

# 0,5 or 12,25, but not 1,250, which may be a number above a thousand.
_DECIMAL_COMMA = re.compile(r"[+-]?(0,\d+|\d+,(\d{1,2}|\d{4,}))")


def json_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of JSON lines, read as they are asked for; or of one JSON array, which is read as a whole.

    Raises:
        ValueError: a line or an element that is not a JSON object; the message names the place (``rates.jsonl:3``).
    """
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        text = "".join(chain([first[1]], (line for _, line in numbered)))
        try:
            elements = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{name}: not a JSON array: {error}") from error
        yield from (_object(f"{name}, row {number}", row) for number, row in enumerate(elements, start=1))
        return
    for number, line in chain([first], numbered):
        where = f"{name}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        yield _object(where, row)


def csv_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of a CSV file with a header, read as they are asked for; open it with ``newline=""``.

    Raises:
        ValueError: a row of another length than the header, or one that is no CSV; the message names the place.
    """
    csv.field_size_limit(LONGEST_CELL)
    reading = iter(lines)
    header = next(reading, "")
    reader = csv.reader(chain([header], reading), delimiter=delimiter_of(header), skipinitialspace=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        for column in columns:
            if columns.count(column) > 1:
                raise ValueError(f"{name}:1: the column {column!r} occurs twice: rename one")
        for cells in reader:
            if cells:
                if len(cells) != len(columns):
                    raise ValueError(
                        f"{name}:{reader.line_num}: the header has {len(columns)} columns, this row another number"
                    )
                yield f"{name}:{reader.line_num}", dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: not CSV: {error}") from error


def delimiter_of(header: str) -> str:
    """The delimiter of a CSV header: the one of ``,``, ``;`` and tab that finds most known columns, or most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error:
            return 0, 0
        return sum(name in KNOWN_COLUMNS for name in names), len(names)

    return max(DELIMITERS, key=found)


def number_in(cell: object) -> float | None:
    """The number in a cell, perhaps infinite or NaN; None if it holds none.

    True and False, as values or as text, count 1 and 0. A decimal comma is read where it cannot separate thousands.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if text.lower() in ("true", "false"):
            return float(text.lower() == "true")
        if _DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
        try:
            return float(text)
        except ValueError:
            return None
    if isinstance(cell, bool | int | float | Decimal):
        try:
            return float(cell)
        except OverflowError:  # a whole number of hundreds of digits
            return math.inf if cell > 0 else -math.inf
    return None


def shown(value: object) -> str:
    """A cell for a message: as Python writes it, cut to 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def csv_cell(value: object) -> str:
    """A value as a cell of a CSV file: text as it is, what JSON can hold as JSON, nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | dict | list) else str(value)


def _object(where: str, row: object) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with named values, found {shown(row)}")
    return where, row
