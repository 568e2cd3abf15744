"""Progress of the runs, read from their traces, as a live table in a terminal or as lines in a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from knapsack_rl.metrics import mean, step_metrics
from knapsack_rl.report.runs import HELDOUT, Run, make_runs
from knapsack_rl.report.tables import NONE, duration, headline, percent
from knapsack_rl.report.verdict import verdict
from knapsack_rl.trace import (
    TRACE_NAME,
    End,
    Evaluation,
    Record,
    Resume,
    RunStart,
    Step,
    TraceReader,
    read_trace,
)

# Steps that a displayed mean covers: single steps are noisy.
WINDOW: Final = 10
COLUMNS: Final = (
    "rule", "step", "", "reward", "held-out", "prompts mixed", "rollouts mixed", "largest group", "rollouts", "left"
)  # fmt: skip
# Lines per run in a log.
LOG_LINES: Final = 10


@dataclass
class RunProgress:
    """The progress of one run, as far as its trace goes.

    Attributes:
        rule: the rule of the run.
        reader: reads its trace.
        total: generation steps of the whole run; 0 while unknown.
        done: generation steps done.
        rollouts: rollouts spent.
        largest: largest group so far.
        heldout: last held-out pass rate; NaN without evaluations.
        ended: reason of the end; None while the run goes on.
    """

    rule: str
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
    def recent(self) -> tuple[float, float, float]:
        """Means over the latest steps: reward, share of prompts in mixed groups, share of rollouts in mixed groups."""
        reward, prompts, rollouts = (
            mean(np.array(column)) for column in zip(*self._recent or [[np.nan] * 3], strict=True)
        )
        return reward, prompts, rollouts

    @property
    def seconds_left(self) -> float:
        """Expected time to the end; NaN while unknown."""
        if self.ended:
            return 0.0
        if not self._seconds or not self.total:
            return float("nan")
        left = (self.total - self.done) * float(np.mean(self._seconds))
        return max(0.0, left - (time.monotonic() - self._latest))

    def poll(self) -> bool:
        """Process the new records of the trace; return whether there were any."""
        records = self.reader.poll()
        for record in records:
            self._take(record)
        return bool(records)

    def _take(self, record: Record) -> None:
        match record:
            case RunStart():
                # A new file: an earlier one was renamed.
                self.done = self.rollouts = self.largest = 0
                self.total = _generation_steps(record.fields.get("settings", {}))
            case Resume():
                self.done, self.ended = record.step, None
                self._seconds.clear()
            case Evaluation():
                self.heldout = record.metrics.get(HELDOUT, float("nan"))
            case End():
                self.ended = record.reason
            case Step():
                self._take_step(record)

    def _take_step(self, step: Step) -> None:
        measured = step_metrics(step.plan, step.outcomes)
        reward = mean(step.outcomes.rewards_PG)
        self._recent.append((reward, measured["frac_prompts_mixed"], measured["frac_rollouts_mixed"]))
        self.done = step.plan.step + 1
        self.rollouts = self.done * step.plan.budget
        self.largest = max(self.largest, int(step.plan.counts_P.max()))
        # The first step includes start-up.
        if "step" in step.seconds and step.plan.step > 0:
            self._seconds.append(step.seconds["step"])
        self._latest = time.monotonic()


class ProgressDisplay:
    """Shows the progress of runs; a context manager. Call ``update`` when traces may have grown.

    Args:
        console: a terminal (live table) or a log (lines).
        runs: the runs to show.
    """

    def __init__(self, console: Console, runs: Sequence[RunProgress]) -> None:
        self.console, self.runs = console, runs
        self.note = ""
        self._logged = {run.rule: -1 for run in runs}
        self._live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._table) if console.is_terminal else None
        )

    def __enter__(self) -> ProgressDisplay:
        """Start the display."""
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the display; the last state stays on the screen."""
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def say(self, note: str) -> None:
        """Show a message: below the table, or as a line of the log."""
        self.note = note
        if self._live is None:
            say(self.console, note)

    def update(self) -> None:
        """Read the traces."""
        for run in self.runs:
            if run.poll() and self._live is None:
                self._log(run)

    def _log(self, run: RunProgress) -> None:
        if not run.done:
            return
        every = max(1, run.total // LOG_LINES)
        if run.done // every > self._logged[run.rule] // every or (run.ended and run.done > self._logged[run.rule]):
            self._logged[run.rule] = run.done
            cells = [f"{name} {cell}" for name, cell in zip(COLUMNS[3:], _cells(run), strict=True) if cell != NONE]
            say(self.console, f"{run.rule:10} step {_steps(run)}: {', '.join(cells)}")

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("rule", "") else "right")
        for run in self.runs:
            bar = ProgressBar(total=max(run.total, 1), completed=run.done, width=16)
            table.add_row(run.rule, _steps(run), bar, *_cells(run))
        note = Text(self.note or f"reward and shares: mean of the last {WINDOW} steps", style="dim")
        return Group(table, note)


def follow_runs(output: Path, rules: Sequence[str]) -> list[RunProgress]:
    """The progress of runs that are about to start; their traces need not exist yet."""
    progress = [RunProgress(rule, TraceReader(output / rule / TRACE_NAME)) for rule in rules]
    for run in progress:
        run.poll()
        run.ended = None  # the end record was written before the resume
    return progress


def print_summary(console: Console, output: Path, rules: Sequence[str]) -> list[Run]:
    """Print the closing table of a job and the comparison of its rules; runs without a step are left out."""
    traces = [read_trace(output / rule / TRACE_NAME) for rule in rules if (output / rule / TRACE_NAME).is_file()]
    runs = make_runs([trace for trace in traces if trace.steps])
    if runs:
        table = Table(header_style="bold")
        table.add_column("")
        for run in runs:
            table.add_column(run.rule, justify="right")
        measures = headline(runs)
        for name in measures[0]:
            table.add_row(name, *[column[name].replace("→", "->") for column in measures])
        console.print()
        console.print(table)
        for sentence in verdict(runs):
            say(console, sentence)
    return runs


def say(console: Console, text: str) -> None:
    """Print a sentence without markup, colours or line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _steps(run: RunProgress) -> str:
    return f"{run.done}/{run.total}" if run.total else str(run.done)


def _cells(run: RunProgress) -> list[str]:
    reward, prompts_mixed, rollouts_mixed = run.recent
    return [
        _number(reward),
        _number(run.heldout),
        percent(prompts_mixed),
        percent(rollouts_mixed),
        str(run.largest) if run.largest else NONE,
        f"{run.rollouts:,}",
        run.ended or duration(run.seconds_left),
    ]


def _number(value: float) -> str:
    return NONE if np.isnan(value) else f"{value:.3f}"


def _generation_steps(settings: dict[str, object]) -> int:
    """Generation steps of the whole run, by the settings in its trace; 0 if they are not there."""
    for name in ("generation_steps", "max_steps"):
        total = settings.get(name)
        if isinstance(total, int) and total > 0:
            return total
    return 0
