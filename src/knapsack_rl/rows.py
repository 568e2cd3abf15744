"""Rows of tables that somebody's script wrote: names of files and columns; CSV and JSON lines, one by one."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
ID_COLUMNS = ("prompt_id", "id")

# Where a row stands, for messages, and its cells by column.
Row: TypeAlias = tuple[str, Mapping[str, object]]


def json_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of JSON lines, read as they are asked for; empty lines are skipped.

    Raises:
        ValueError: a line that is not a JSON object; the message names the place (``rates.jsonl:3``).
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with named values, found {line.strip()[:40]!r}")
        yield where, row


def csv_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of a CSV file with a header, read as they are asked for; open it with ``newline=""``.

    Raises:
        ValueError: a row of another length than the header, or one that is no CSV; the message names the place.
    """
    reader = csv.DictReader(lines, skipinitialspace=True)
    try:
        for cells in reader:
            where = f"{name}:{reader.line_num}"
            if None in cells or None in cells.values():
                columns = len(reader.fieldnames or ())
                raise ValueError(f"{where}: the header has {columns} columns, this row another number")
            yield where, cells
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: not CSV: {error}") from error
