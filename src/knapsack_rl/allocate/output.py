"""Write the counts of a plan, with the other columns of its input, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from knapsack_rl.allocate.rows import ABSENT, COUNT_COLUMN
from knapsack_rl.console.rows import ID_COLUMNS, SUFFIXES, csv_cell
from knapsack_rl.files import plain_json, replacing
from knapsack_rl.plan import Plan

FORMATS: Final = ("csv", "jsonl", "parquet")
# Names of standard output, as a shell has them.
STANDARD_OUTPUT: Final = ("-", "/dev/stdout", "/dev/fd/1")


def output_format(output: Path | None, input_format: str) -> str:
    """The format by the name of the output, else that of the input; text where standard output is meant."""
    named = SUFFIXES.get(output.suffix.lower()) if output is not None else None
    return named or ("csv" if input_format == "parquet" else input_format)


def counts_as(to: str, plan: Plan, columns: Mapping[str, Sequence[object]], delimiter: str = ",") -> bytes:
    """The counts as a file: id, count, then the other columns.

    Args:
        to: one of ``FORMATS``.
        plan: the plan.
        columns: other columns by name, one value a prompt; ``ABSENT`` for none.
        delimiter: between the cells of CSV.

    Raises:
        ValueError: text that cannot be written (an unpaired surrogate in CSV), or a column without a Parquet type.
        ModuleNotFoundError: Parquet without pyarrow.
    """
    if to == "parquet":
        return _parquet(plan, columns)
    if to == "jsonl":
        lines = (json.dumps(plain_json(row)) + "\n" for row in _objects(plan, columns))
        return "".join(lines).encode("ascii")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow([ID_COLUMNS[0], COUNT_COLUMN, *columns])
    cells = ([csv_cell(None if value is ABSENT else value) for value in column] for column in columns.values())
    writer.writerows(zip(plan.prompt_ids, plan.counts_P.tolist(), *cells, strict=True))
    try:
        return text.getvalue().encode()
    except UnicodeEncodeError as error:
        bad = error.object[error.start]
        raise ValueError(f"the input holds {bad!r}, which is no character of a CSV file: use --to jsonl") from error


def write_output(data: bytes, output: Path | None) -> None:
    """Write to standard output, or all or nothing to a file.

    Raises:
        OSError: the file cannot be written.
        ValueError: standard output is closed.
    """
    if output is not None:
        with replacing(output) as file:
            file.write(data)
    elif sys.stdout is None:
        raise ValueError("standard output is closed: name a file with --output")
    else:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:  # a stand-in that takes text only
            sys.stdout.write(data.decode())
        else:
            sys.stdout.flush()
            binary.write(data)
            binary.flush()


def _objects(plan: Plan, columns: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    for i, (prompt_id, count) in enumerate(zip(plan.prompt_ids, plan.counts_P.tolist(), strict=True)):
        others = {name: values[i] for name, values in columns.items() if values[i] is not ABSENT}
        yield {ID_COLUMNS[0]: prompt_id, COUNT_COLUMN: count, **others}


def _parquet(plan: Plan, columns: Mapping[str, Sequence[object]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    others = {name: [None if value is ABSENT else value for value in values] for name, values in columns.items()}
    sink = io.BytesIO()
    try:
        pq.write_table(pa.table({ID_COLUMNS[0]: plan.prompt_ids, COUNT_COLUMN: plan.counts_P, **others}), sink)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"the columns cannot be written as Parquet ({error}): use --to jsonl") from error
    return sink.getvalue()
