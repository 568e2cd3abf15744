"""The append-only record of a run: one JSON line per record, flushed as it is written.

Every trainer writes it; metrics, replay and the report read nothing else. A record counts once its line is complete:
a kill or a crash can only leave the last line without its newline, which every reader ignores and a resumed writer cuts
off (`read_records`).

| kind   | written              | holds                                                                                |
|--------|----------------------|--------------------------------------------------------------------------------------|
| run    | first                | version, library, engine, rule, seed, started, settings                              |
| step   | per generation step  | the plan (ids, counts, low, high, rates, pseudo_counts, seen, budget, price), its    |
|        |                      | outcomes (got, rewards, tokens, threshold), seconds, texts of new prompts, samples   |
| eval   | per evaluation       | step, rollouts spent so far, metrics, and exact success rates by prompt where known  |
| resume | when a run continues | step: earlier records of this and later steps are superseded (of evals: only later)  |
| end    | last                 | reason ("finished" or "interrupted"), seconds                                        |

NaN is written as null, and so is an infinite pseudo-count (a point estimate).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from knapsack_rl.files import plain_json
from knapsack_rl.metrics import as_text
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan

VERSION = 2
TRACE_NAME = "trace.jsonl"
# How the writer begins a file; tells a first line that a kill cut off from a file that is no trace.
_START = b'{"kind":"run"'


@dataclass(frozen=True)
class RunStart:
    """The first record: ``fields`` holds engine, rule, seed, started, settings and any others that were given."""

    fields: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One generation step.

    Attributes:
        plan, outcomes: the decision and its rollouts, over the same prompts in the same order.
        optimizer_step: optimizer steps done when the rollouts were made.
        seconds: wall-clock times by name, at least ``allocate`` and ``step`` where the writer measured them.
        samples: a few completions, each ``{"id", "completion", "reward"}``.
        texts: prompt texts by id, of prompts that appear for the first time.
    """

    plan: Plan
    outcomes: Outcomes
    optimizer_step: int
    seconds: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.outcomes.prompt_ids != self.plan.prompt_ids:
            raise ValueError("outcomes must list the plan's prompts in the plan's order (0 rows where none came back)")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, after ``step`` generation steps and ``rollouts`` rollouts; ``rates`` are exact, by id."""

    step: int
    rollouts: int
    metrics: Mapping[str, float]
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Resume:
    """The run continued after ``step`` generation steps; records of later ones are superseded."""

    step: int


@dataclass(frozen=True)
class End:
    """The run ended for ``reason``, ``seconds`` after it was (last) started."""

    reason: str
    seconds: float


Record: TypeAlias = RunStart | Step | Evaluation | Resume | End


# The records whose fields are written as they are, by kind.
_PLAIN: dict[str, type[Evaluation | Resume | End]] = {"eval": Evaluation, "resume": Resume, "end": End}
# Arrays of a plan by their names in the file.
_PLAN_ARRAYS: dict[str, tuple[str, Any]] = {
    "counts": ("counts_P", np.int64), "low": ("low_P", np.int64), "high": ("high_P", np.int64),
    "rates": ("success_rates_P", np.float64), "pseudo_counts": ("pseudo_count_P", np.float64),
    "seen": ("seen_P", np.bool_),
}  # fmt: skip


def encode(record: Record) -> bytes:
    """The record as one line of ASCII, newline included."""
    match record:
        case RunStart(given):
            fields: dict[str, object] = {"kind": "run", "version": VERSION, **given}
        case Step(plan, outcomes):
            fields = {
                "kind": "step",
                "step": plan.step,
                "optimizer_step": record.optimizer_step,
                "budget": plan.budget,
                "price": plan.price,
                "ids": plan.prompt_ids,
                **{key: getattr(plan, name) for key, (name, _) in _PLAN_ARRAYS.items()},
                "got": outcomes.counts_P,
                "rewards": outcomes.rewards_PG,
                "tokens": outcomes.tokens_PG,
                "threshold": outcomes.success_threshold,
                "seconds": record.seconds,
                "texts": record.texts or {},
                "samples": record.samples,
            }
        case _:
            fields = {"kind": next(kind for kind, cls in _PLAIN.items() if isinstance(record, cls)), **vars(record)}
    return json.dumps(plain_json(fields), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Record | None:
    """The record of a line; None for a kind that this version does not know.

    Raises:
        ValueError: not JSON, not a record, or of another version. `read_records` adds the file and the line.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict) or "kind" not in fields:
        raise ValueError("not a record of a trace")
    kind = fields.pop("kind")
    try:
        if kind == "run":
            if fields["version"] != VERSION:
                raise ValueError(f"version {fields['version']} of the format, and this library reads {VERSION}")
            return RunStart(fields)
        if kind == "step":
            return _step(fields)
        for name in ("metrics", "rates"):
            if fields.get(name) is not None:
                fields[name] = _floats(fields[name])
        return _PLAIN[kind](**fields) if kind in _PLAIN else None
    except (KeyError, TypeError) as error:
        raise ValueError(f"a record without, or with a wrong, {error}") from error


def _step(fields: dict[str, Any]) -> Step:
    ids, step, tokens = tuple(fields["ids"]), fields["step"], fields["tokens"]
    # numpy reads None as NaN.
    arrays: dict[str, Any] = {name: np.array(fields[key], dtype) for key, (name, dtype) in _PLAN_ARRAYS.items()}
    arrays["pseudo_count_P"][np.isnan(arrays["pseudo_count_P"])] = np.inf
    outcomes = Outcomes(
        step=step,
        prompt_ids=ids,
        counts_P=np.array(fields["got"], dtype=np.int64),
        rewards_PG=np.array(fields["rewards"], dtype=np.float64),
        tokens_PG=None if tokens is None else np.array(tokens, dtype=np.int64),
        success_threshold=fields["threshold"],
    )
    return Step(
        plan=Plan(step=step, prompt_ids=ids, budget=fields["budget"], price=_float(fields["price"]), **arrays),
        outcomes=outcomes,
        optimizer_step=fields["optimizer_step"],
        seconds=_floats(fields["seconds"]),
        samples=fields["samples"],
        texts=fields["texts"],
    )


def _floats(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _float(value) for name, value in values.items()}


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def read_records(path: Path | str, start: int = 0) -> Iterator[tuple[int, Record | None]]:
    """Read a trace line by line, from a byte offset on: the only place that knows how a file may be damaged.

    A last line without a newline is being written, or was cut off by a kill: reading ends before it.

    Yields:
        The byte offset after the line, and its record; None for a kind that this version does not know.

    Raises:
        OSError: the file cannot be read.
        ValueError: a complete line that is damaged, by file and line, or a file that does not start with a run record.
    """
    end = start
    with Path(path).open("rb") as file:
        file.seek(start)
        for number, line in enumerate(file, start=1):
            try:
                if not line.endswith(b"\n"):
                    if end == 0 and line[: len(_START)] != _START[: len(line)]:
                        raise ValueError("not a record of a trace")
                    return
                record = decode(line)
                if end == 0 and not isinstance(record, RunStart):
                    raise ValueError("a trace starts with a run record")
            except ValueError as error:
                raise ValueError(f"{path}{f': byte {end}' if start else f':{number}'}: {error}") from error
            end += len(line)
            yield end, record


@dataclass
class Trace:
    """The records of a run, without those that a resume superseded.

    Attributes:
        path: the file.
        run: the fields of the first record; empty if the file holds no record yet.
        steps, evals: in the order in which they were made.
        texts: prompt texts by id.
        ended, seconds: why the run ended, and how long after its last start; None while it runs, or if it was killed.
    """

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    evals: list[Evaluation] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
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
            case Resume():
                self.steps = [step for step in self.steps if step.plan.step < record.step]
                self.evals = [evaluation for evaluation in self.evals if evaluation.step <= record.step]
                self.ended = self.seconds = None
                self._before_resume = len(self.steps)
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


class TraceWriter:
    """Appends the records of one run to a file.

    Args:
        path: the file; missing folders are made. An existing file is renamed (``trace.jsonl.1``) unless it is resumed,
            so that no record is lost.
        run: fields of the run record: ``engine``, ``rule``, ``seed``, ``settings``, and any others.
        resume_step: generation steps already done when an earlier run continues; None starts a new one.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file to resume is not a trace, or has a damaged line.
    """

    def __init__(self, path: Path | str, run: Mapping[str, object], resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._known: set[str] = set()
        if resume_step is None:
            _move_aside(self.path)
        elif self.path.exists():
            self._known = _known_texts(self.path)
        self._file = self.path.open("ab")
        if self._file.tell() == 0:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            from importlib.metadata import version  # slow to import, and needed by a new trace only

            self._append(RunStart({"library": version("knapsack-rl"), "started": started, **run}))
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
        """Record one generation step, as `Step`; texts that the file holds already are not written again."""
        new = {prompt_id: text for prompt_id, text in (texts or {}).items() if prompt_id not in self._known}
        shown = [{**sample, "completion": as_text(sample["completion"])} for sample in samples]
        self._append(Step(plan, outcomes, optimizer_step, seconds, shown, new))
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
        """Close the file without an end record, as a kill would."""
        self._file.close()

    def __enter__(self) -> TraceWriter:
        """Close the file at the end of the block; an exception ends the run as "interrupted"."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end("interrupted")
        self.close()

    def _append(self, record: Record) -> None:
        self._file.write(encode(record))
        self._file.flush()


def _move_aside(path: Path) -> None:
    """Rename an existing trace to the first free ``trace.jsonl.<n>``."""
    if path.exists() and path.stat().st_size > 0:
        names = (path.with_name(f"{path.name}.{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def _known_texts(path: Path) -> set[str]:
    """Ids of the prompts whose texts a trace holds; cuts an incomplete last line off, so that a new one can follow."""
    records = [(end, record.texts if isinstance(record, Step) else None) for end, record in read_records(path)]
    os.truncate(path, records[-1][0] if records else 0)
    return {prompt_id for _, texts in records for prompt_id in texts or ()}
