"""The results as files, written while the replay runs: a long one keeps no row in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from knapsack_rl.files import replacing
from knapsack_rl.records import strict
from knapsack_rl.replay.score import Score


class StepRows:
    """One tidy row per rule and step, kept on disk until the replay is done; use it as a context."""

    def __init__(self) -> None:
        """No row yet."""
        self._folder = tempfile.TemporaryDirectory(prefix="knapsack-rl-")
        self._path = Path(self._folder.name) / "steps.jsonl"
        self._file = self._path.open("wb")
        self._figures: list[str] = []

    def __enter__(self) -> StepRows:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Forget the rows that nobody wrote."""
        self._file.close()
        self._folder.cleanup()

    def add(self, rule: str, step: int, score: Score) -> None:
        """Take in a row."""
        self._figures = self._figures or list(score.figures)
        self._file.write(_line({"rule": rule, "step": step, **score.figures}) + b"\n")

    def write_json(self, path: Path, summary: Mapping[str, Any]) -> None:
        """The summary and, as ``steps``, all rows: one JSON document, all or nothing."""
        self._file.flush()
        with replacing(path) as out, self._path.open("rb") as rows:
            out.write(_line(summary).removesuffix(b"}") + b', "steps": [')
            for number, row in enumerate(rows):
                out.write((b",\n" if number else b"\n") + row.rstrip(b"\n"))
            out.write(b"\n]}\n")

    def write_parquet(self, path: Path) -> None:
        """All rows as Parquet, all or nothing; NaN is null."""
        import polars as pl

        self._file.flush()
        schema = {"rule": pl.String, "step": pl.Int64, **dict.fromkeys(self._figures, pl.Float64)}
        with replacing(path) as out:
            pl.scan_ndjson(self._path, schema=schema).sink_parquet(out)


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(strict(fields), allow_nan=False).encode("ascii")
