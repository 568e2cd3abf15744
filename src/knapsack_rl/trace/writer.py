"""Writes the trace of a run, and never ends the run because the trace cannot be written."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import FileIO
from itertools import count
from pathlib import Path

from knapsack_rl.metrics import as_text
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace.looks import FeatureLog
from knapsack_rl.trace.reader import read_records
from knapsack_rl.trace.records import End, Evaluation, Kept, Lost, Record, Resume, RunStart, Step, encode

logger = logging.getLogger(__name__)


class TraceWriter:
    """Appends the records of one run to a file.

    A record that cannot be written is lost, and the run goes on: one warning says so, what was written of the record is
    undone, and the next record that can be written is preceded by one that says what is missing.

    Args:
        path: the file; missing folders are made. An existing file is renamed (``trace.jsonl.1``) unless it is resumed,
            so that no record is lost, also if several runs start at once.
        run: fields of the run record: ``engine``, ``rule``, ``seed``, ``settings``, and any others.
        resume_step: generation steps already done when an earlier run continues; None starts a new one.

    Raises:
        ValueError: the file to resume is not a trace, or has a damaged line. It stays as it is.
    """

    def __init__(self, path: Path | str, run: Mapping[str, object], resume_step: int | None = None) -> None:
        self.path, self._run, self._resume_step = Path(path), run, resume_step
        self._began = time.monotonic()
        self._known: set[str] = set()
        self._features = FeatureLog(begins=resume_step is None)  # after a resume they may be computed anew
        self._file: FileIO | None = None
        self._closed = self._warned = False
        self._first = b""  # the records that begin the file, or continue it, until they are written
        self._torn = 0  # bytes of an incomplete line at the end of the file
        self._missing: list[int | None] = []  # the step of each record that was lost since the last that was written
        self._reason = ""
        self._lock = threading.Lock()
        try:
            self._begin()
        except OSError as error:
            self._miss(None, error)

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
        """Record one generation step, as `Step`; texts that the file holds already are not written again."""
        new = {prompt_id: text for prompt_id, text in (texts or {}).items() if prompt_id not in self._known}
        shown = [
            {"reward": None, **sample, "id": str(sample["id"]), "completion": as_text(sample["completion"])}
            for sample in samples
        ]
        look = None if plan.features is None else plan.features.confidence_P_C
        log_odds_P = look[:, 0] if look is not None and look.shape[1] == 1 else None  # confidences of another kind: not
        features = None if plan.features is None else self._features.news(plan.prompt_ids, plan.features)
        if self._append(Step(plan, outcomes, optimizer_step, seconds, shown, new, log_odds_P, features)):
            self._known.update(new)
        else:  # what it said of prompts is not in the file
            self._features = FeatureLog(begins=False)

    def evaluation(
        self, step: int, rollouts: int, metrics: Mapping[str, float], rates: Mapping[str, float] | None = None
    ) -> None:
        """Record an evaluation after ``step`` generation steps and ``rollouts`` rollouts."""
        self._append(Evaluation(step, rollouts, metrics, rates))

    def kept(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record how many successes are kept after a generation step, and what was used of them in it."""
        self._append(Kept(step, metrics))

    def end(self, reason: str) -> None:
        """Record why the run ended, and close the file. A second call does nothing."""
        if not self._closed:
            self._append(End(reason, time.monotonic() - self._began))
            self.close()

    def close(self) -> None:
        """Close the file without an end record, as a kill would; later records are lost."""
        self._closed = True
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def __enter__(self) -> TraceWriter:
        """Close the file at the end of the block; an exception ends the run as "interrupted"."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end("interrupted")
        self.close()

    def _append(self, record: Record) -> bool:
        """Write a record, or note that it is lost: whatever goes wrong with a record must not end the run.

        Returns:
            Whether it was written.
        """
        with self._lock:
            try:
                line = encode(record)
                self._begin()
                self._write(line)
            except Exception as error:
                self._miss(record, error)
                return False
            return True

    def _begin(self) -> None:
        """Open the file, where that was not possible so far, and write what begins or continues it."""
        if self._closed:
            raise ValueError("the trace is closed")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._resume_step is not None and self.path.is_file():
                self._known = _known_texts(self.path)
                self._file = FileIO(self.path, "ab")
            else:
                self._file = _new_file(self.path)
            if os.fstat(self._file.fileno()).st_size == 0:
                from importlib.metadata import version  # slow to import, and needed by a new trace only

                started = datetime.now(UTC).isoformat(timespec="seconds")
                self._first += encode(RunStart({"library": version("knapsack-rl"), "started": started, **self._run}))
            if self._resume_step is not None:
                self._first += encode(Resume(self._resume_step))
        if self._first:
            self._write(b"")

    def _write(self, line: bytes) -> None:
        """Append what is waiting and a line, as a whole or not at all."""
        assert self._file is not None
        handle = self._file.fileno()
        if self._torn:
            self._undo(handle)
        lost = b""
        if line and self._missing:
            steps = sorted({step for step in self._missing if step is not None})
            lost = encode(Lost(len(self._missing), steps, self._reason))
        rest = memoryview(self._first + lost + line)
        try:
            while rest:
                written = os.write(handle, rest)
                self._torn += written
                rest = rest[written:]
        except OSError:
            with contextlib.suppress(OSError):
                self._undo(handle)
            raise
        self._torn, self._first = 0, b""
        if lost:
            logger.info("%s is written again: %d records are missing from it", self.path, len(self._missing))
            self._missing.clear()

    def _undo(self, handle: int) -> None:
        """Cut the incomplete line off.

        Raises:
            OSError: that is not possible, or another process has written behind it.
        """
        if self._torn:
            size = os.fstat(handle).st_size
            if os.lseek(handle, 0, os.SEEK_CUR) != size:
                raise OSError(f"another process writes to {self.path}")
            os.ftruncate(handle, size - self._torn)
            os.lseek(handle, 0, os.SEEK_END)
            self._torn = 0

    def _miss(self, record: Record | None, error: Exception) -> None:
        """Note that a record is lost; the first time with a warning."""
        step = record.plan.step if isinstance(record, Step) else getattr(record, "step", None)
        if record is not None:
            self._missing.append(step)
        if not self._warned:
            self._warned = True
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error!r}"
            self._reason = str(reason)
            since = "" if step is None else f" from step {step} on"
            logger.warning(
                "the trace %s cannot be written (%s): the run goes on, and records are missing from the trace%s until "
                "it can be written again, when it says which",
                self.path,
                self._reason,
                since,
            )


def move_aside(path: Path) -> Path | None:
    """Rename a trace to the first free ``trace.jsonl.<n>``; None if there is none.

    Nothing is overwritten if several processes do this at once: a rename gives each file to one of them.

    Raises:
        OSError: the file cannot be renamed, or is no regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    taken = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.rename(taken)
    except FileNotFoundError:
        return None
    for number in count(1):
        free = path.with_name(f"{path.name}.{number}")
        try:
            os.link(taken, free)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if free.exists():
                continue
            taken.rename(free)
            return free
        taken.unlink()
        return free
    return None


def _new_file(path: Path) -> FileIO:
    """A new file to append to; an existing one is moved aside."""
    while True:
        try:
            return FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o666))
        except FileExistsError:
            move_aside(path)


def _known_texts(path: Path) -> set[str]:
    """Ids of the prompts whose texts a trace holds; cuts an incomplete last line off, so that a new one can follow."""
    records = [(end, record.texts if isinstance(record, Step) else None) for end, record in read_records(path)]
    os.truncate(path, records[-1][0] if records else 0)
    return {prompt_id for _, texts in records for prompt_id in texts or ()}
