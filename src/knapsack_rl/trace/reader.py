"""Reads traces: whole, record by record, or while they are being written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knapsack_rl.files import complete_lines
from knapsack_rl.trace.records import START, End, Evaluation, Kept, Lost, Record, Resume, RunStart, Step, decode


def read_records(path: Path | str, start: int = 0) -> Iterator[tuple[int, Record | None]]:
    """Read a trace line by line, from a byte offset on.

    A last line without a newline is being written, or was cut off by a kill: reading ends before it.

    Yields:
        The byte offset after the line, and its record; None for a kind that this version does not know.

    Raises:
        OSError: the file cannot be read.
        ValueError: a complete line that is damaged, by file and line, or a file that does not start with a run record.
    """
    end = start
    number = 0
    for number, (after, line) in enumerate(complete_lines(path, start), start=1):
        try:
            record = decode(line)
            if end == 0 and not isinstance(record, RunStart):
                raise ValueError("a trace starts with a run record")
        except ValueError as error:
            raise ValueError(f"{path}{f': byte {end}' if start else f':{number}'}: {error}") from error
        end = after
        yield end, record
    if end == 0:
        with Path(path).open("rb") as file:
            first = file.read(len(START))
        if first != START[: len(first)]:
            raise ValueError(f"{path}:1: not a record of a trace")


@dataclass
class Trace:
    """The records of a run, without those that a resume superseded.

    Attributes:
        path: the file.
        run: the fields of the first record; empty if the file holds no record yet.
        steps, evals: in the order in which they were made.
        texts: prompt texts by id.
        lost: what the file says of records that could not be written.
        kept: by step, where successes are kept.
        ended, seconds: why the run ended, and how long after its last start; None while it runs, or if it was killed.
    """

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    evals: list[Evaluation] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    ended: str | None = None
    seconds: float | None = None
    _before_resume: int = field(default=0, init=False, repr=False)

    def add(self, record: Record | None) -> None:
        """Add the next record of the file; None adds nothing."""
        match record:
            case RunStart():
                self.run = record.fields
            case Step():
                self._supersede(record)
                self.steps.append(record)
                self.texts.update(record.texts or {})
            case Evaluation():
                self.evals.append(record)
            case Kept():
                self.kept.append(record)
            case Resume():
                self.kept = [kept for kept in self.kept if kept.step < record.step]
                self.steps = [step for step in self.steps if step.plan.step < record.step]
                self.evals = [evaluation for evaluation in self.evals if evaluation.step <= record.step]
                self.ended = self.seconds = None
                self._before_resume = len(self.steps)
            case Lost():
                self.lost.append(record)
            case End():
                self.ended, self.seconds = record.reason, record.seconds

    def _supersede(self, record: Step) -> None:
        """Drop what a killed run recorded of a plan that was open in the checkpoint and is now complete again."""
        plan = record.plan
        for i, earlier in enumerate(self.steps[: self._before_resume]):
            if (earlier.plan.step, earlier.plan.prompt_ids) == (plan.step, plan.prompt_ids):
                del self.steps[i]
                self._before_resume -= 1
                break


def read_trace(path: Path | str) -> Trace:
    """Read a whole trace, of a finished, a running or a killed run.

    Raises:
        OSError, ValueError: as `read_records`.
    """
    trace = Trace(Path(path))
    for _, record in read_records(path):
        trace.add(record)
    return trace


class TraceReader:
    """Reads a trace while it is being written; the file need not exist yet."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._offset, self._inode = 0, -1

    def poll(self) -> list[Record]:
        """Return the records that arrived since the last call; `Trace.add` joins them to the whole run.

        A file that was replaced or cut short is read again from its start, beginning with a ``RunStart``.
        """
        if not self.path.exists():
            return []
        found = self.path.stat()
        if found.st_ino != self._inode or found.st_size < self._offset:
            self._offset, self._inode = 0, found.st_ino
        arrived = list(read_records(self.path, self._offset))
        self._offset = arrived[-1][0] if arrived else self._offset
        return [record for _, record in arrived if record is not None]
