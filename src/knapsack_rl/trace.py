"""The append-only record of a run: written line by line and flushed, so that a killed run leaves a readable trace.

Every engine writes it; metrics, replay and the report read nothing else. Only the last line of a file may be damaged,
because a kill can only hit the line that is being written: reading ignores it, resuming cuts it off.
``records.py`` says what each line holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.records import End, Evaluation, Record, Resume, RunStart, Step, decode, encode

__all__ = [
    "End",
    "Evaluation",
    "Record",
    "Resume",
    "RunStart",
    "Step",
    "Trace",
    "TraceReader",
    "TraceWriter",
    "read_trace",
]


@dataclass
class Trace:
    """A run as it stands.

    Attributes:
        path: the file.
        run: the fields of the first record; empty if the file holds no record yet.
        steps, evals: in the order they were made; superseded ones are gone.
        texts: prompt texts by id.
        ended: why the run ended; None while it runs, or if it was killed.
        seconds: how long the run took, since it was last started; None until it ended.
    """

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    evals: list[Evaluation] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    ended: str | None = None
    seconds: float | None = None

    @property
    def started(self) -> str | None:
        """When the run was first started, in ISO 8601."""
        return self.run.get("started")

    def add(self, record: Record) -> None:
        """Take in the next record of the file."""
        match record:
            case RunStart():
                self.run = record.fields
            case Step():
                self.steps.append(record)
                self.texts.update(record.texts or {})
            case Evaluation():
                self.evals.append(record)
            case Resume():
                self.steps = [step for step in self.steps if step.plan.step < record.step]
                self.evals = [evaluation for evaluation in self.evals if evaluation.step <= record.step]
                self.ended = self.seconds = None
            case End():
                self.ended, self.seconds = record.reason, record.seconds


def read_trace(path: Path | str) -> Trace:
    """Read a whole trace, of a finished, a running or a killed run.

    Raises:
        OSError: the file cannot be read.
        ValueError: a damaged line that is not the last, or a file that does not start with a run record. The message
            names the file and the line.
    """
    path = Path(path)
    trace = Trace(path)
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = decode(line)
            if number == 1 and not isinstance(record, RunStart):
                raise ValueError("a trace starts with a run record")
        except ValueError as error:
            # A file of one half-written line is a run killed at birth; one that never was JSON is not a trace.
            if number == len(lines) and (number > 1 or line.startswith(b'{"kind"')):
                break
            raise ValueError(f"{path}:{number}: {error}") from error
        if record is not None:
            trace.add(record)
    return trace


class TraceReader:
    """Reads a trace while it is being written; the file need not exist yet."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._offset = 0
        self._inode = -1

    def poll(self) -> list[Record]:
        """The records that arrived since the last call; a line still being written waits for the next one.

        A file that was replaced or cut short is read again from its start, beginning with a ``RunStart``. Hand each
        record to ``Trace.add`` to hold the whole run.

        Raises:
            ValueError: a damaged line, named by file and byte offset.
        """
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._offset, self._inode = 0, found.st_ino
                file.seek(self._offset)
                arrived = file.read()
        except FileNotFoundError:
            return []
        records = []
        for line in arrived[: arrived.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                record = decode(line)
            except ValueError as error:
                raise ValueError(f"{self.path}: byte {self._offset}: {error}") from error
            self._offset += len(line)
            if record is not None:
                records.append(record)
        return records


class TraceWriter:
    """Appends the records of one run to a file.

    Args:
        path: the file; missing folders are made. A file that is there already is moved aside (``trace.jsonl.1``) unless
            it is resumed, so that no run's record is ever lost.
        run: what the run is: ``engine``, ``method``, ``seed``, ``settings``, and anything else worth keeping.
        resume_step: generation steps already done when an earlier run goes on; None starts a new one.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file to resume is not a trace, or is damaged before its last line.
    """

    def __init__(self, path: Path | str, run: Mapping[str, object], resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._known: set[str] = set()
        if resume_step is None:
            _move_aside(self.path)
        elif self.path.exists():
            self._known = set(read_trace(self.path).texts)
            _repair_last_line(self.path)
        self._file = self.path.open("ab")
        if self._file.tell() == 0:
            from knapsack_rl import __version__

            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._append(RunStart({"library": __version__, "started": started, **run}))
        if resume_step is not None:
            self._append(Resume(resume_step))

    def step(
        self,
        plan: Plan,
        outcomes: Outcomes,
        *,
        optimizer_step: int,
        seconds: Mapping[str, float],
        texts: Mapping[str, str] | None = None,
        samples: Sequence[Mapping[str, object]] = (),
    ) -> None:
        """Record one generation step; of ``texts``, only prompts that are new to the file are written.

        Raises:
            ValueError: outcomes of other prompts than the plan's.
        """
        new = {prompt_id: text for prompt_id, text in (texts or {}).items() if prompt_id not in self._known}
        self._append(Step(plan, outcomes, optimizer_step, seconds, samples, new))
        self._known.update(new)

    def evaluation(
        self, step: int, rollouts: int, metrics: Mapping[str, float], rates: Mapping[str, float] | None = None
    ) -> None:
        """Record an evaluation after ``step`` generation steps and ``rollouts`` rollouts."""
        self._append(Evaluation(step, rollouts, metrics, rates))

    def end(self, reason: str) -> None:
        """Record why the run ended, and close the file. A second call does nothing."""
        if not self._file.closed:
            self._append(End(reason, time.monotonic() - self._began))
            self.close()

    def close(self) -> None:
        """Close the file without a word about the end, as a kill would."""
        self._file.close()

    def __enter__(self) -> TraceWriter:
        """Close the file at the end of the block; an exception ends the run as "interrupted"."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.end("interrupted")
        self.close()

    def _append(self, record: Record) -> None:
        self._file.write(encode(record))
        self._file.flush()


def _move_aside(path: Path) -> None:
    """Free the name without losing the earlier run: ``trace.jsonl`` becomes the first free ``trace.jsonl.<n>``."""
    if path.exists() and path.stat().st_size > 0:
        number = 1
        while path.with_name(f"{path.name}.{number}").exists():
            number += 1
        path.rename(path.with_name(f"{path.name}.{number}"))


def _repair_last_line(path: Path) -> None:
    """Cut off what a kill left half-written; what would follow it on the same line would be lost with it."""
    data = path.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    try:
        decode(data[start:])
    except ValueError:
        with path.open("r+b") as file:
            file.truncate(start)
    else:
        if not data.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
