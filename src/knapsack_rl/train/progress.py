"""Where the arms of a job stand, read from their traces and from nothing else."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from knapsack_rl.metrics import step_metrics
from knapsack_rl.records import End, Evaluation, Record, Resume, RunStart, Step
from knapsack_rl.trace import TraceReader
from knapsack_rl.train.job import TRACE

# Steps that a shown figure is averaged over: single steps of 32 prompts jump about.
WINDOW = 10


@dataclass
class ArmProgress:
    """One arm, as far as its trace goes.

    Attributes:
        name: the arm.
        reader: follows its trace.
        total: generation steps of the whole run; 0 while unknown.
        done: generation steps done.
        rollouts: rollouts spent.
        largest: largest group so far.
        heldout: last held-out pass rate; NaN without evaluations.
        ended: why the run ended; None while it goes on.
    """

    name: str
    reader: TraceReader
    total: int = 0
    done: int = 0
    rollouts: int = 0
    largest: int = 0
    heldout: float = float("nan")
    ended: str | None = None
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5 * WINDOW))
    _recent: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _latest: float = 0.0

    @property
    def reward(self) -> float:
        """Mean reward of the latest steps."""
        return self._mean(0)

    @property
    def prompts_mixed(self) -> float:
        """Share of the latest steps' prompts whose group was mixed."""
        return self._mean(1)

    @property
    def rollouts_mixed(self) -> float:
        """Share of the latest steps' rollouts that lay in mixed groups."""
        return self._mean(2)

    @property
    def seconds_left(self) -> float:
        """Expected time to the end; NaN while nothing is known."""
        if self.ended:
            return 0.0
        if not self._seconds or not self.total:
            return float("nan")
        left = (self.total - self.done) * float(np.mean(self._seconds))
        return max(0.0, left - (time.monotonic() - self._latest))

    def poll(self) -> bool:
        """Take in what arrived in the trace since the last call; whether there was anything."""
        records = self.reader.poll()
        for record in records:
            self._take(record)
        return bool(records)

    def _take(self, record: Record) -> None:
        match record:
            case RunStart():
                # A new file: an earlier one was moved aside.
                self.done = self.rollouts = self.largest = 0
                self.total = _generation_steps(record.fields.get("settings", {}))
            case Resume():
                self.done, self.ended = record.step, None
                self._seconds.clear()
            case Evaluation():
                self.heldout = record.metrics.get("heldout/pass_rate", float("nan"))
            case End():
                self.ended = record.reason
            case Step():
                self._take_step(record)

    def _take_step(self, step: Step) -> None:
        measured = step_metrics(step.plan, step.outcomes)
        answered = step.outcomes.rewards_PG[step.outcomes.answered_PG]
        reward = float(answered.mean()) if answered.size else float("nan")
        self._recent.append((reward, measured["frac_prompts_mixed"], measured["frac_rollouts_mixed"]))
        self.done = step.plan.step + 1
        self.rollouts = self.done * step.plan.budget
        self.largest = max(self.largest, int(step.plan.counts_P.max()))
        # The first step carries start-up costs.
        if "step" in step.seconds and step.plan.step > 0:
            self._seconds.append(step.seconds["step"])
        self._latest = time.monotonic()

    def _mean(self, column: int) -> float:
        values = [row[column] for row in self._recent if not math.isnan(row[column])]
        return float(np.mean(values)) if values else float("nan")


def follow_arms(output: Path, arms: Sequence[str]) -> list[ArmProgress]:
    """The progress of arms that are about to run; traces that do not exist yet are waited for."""
    progress = [ArmProgress(arm, TraceReader(output / arm / TRACE)) for arm in arms]
    for arm in progress:
        arm.poll()
        arm.ended = None  # what a trace already says is how the arm stood before it is resumed
    return progress


def duration(seconds: float) -> str:
    """A time span as people read it: ``45 s``, ``3 min 05 s``, ``2 h 10 min``; ``-`` if unknown."""
    if math.isnan(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _generation_steps(settings: dict[str, object]) -> int:
    """Generation steps of a whole run, by what its trace says of its settings; 0 if it does not say."""
    for name in ("generation_steps", "max_steps"):
        total = settings.get(name)
        if isinstance(total, int) and total > 0:
            return total
    return 0
