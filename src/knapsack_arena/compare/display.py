"""Terminal output of an experiment: progress while trials run, and the table of the ranking."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Final

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from knapsack_arena.compare.ranking import ALL, Estimate, RankedRule
from knapsack_arena.compare.trials import BASELINE, Trial
from knapsack_arena.compare.workers import TrialEvent

# Lines that a whole experiment writes into a log, failures aside.
LOG_LINES: Final = 20
# Characters of "+0.0123 ±0.0012 ▲", and at most of a rule's name before it is folded.
_FIGURE_WIDTH, _NAME_WIDTH = 17, 32


class Display:
    """Shows the progress of trials, as a context: a live table in a terminal, occasional lines in a log."""

    def __init__(self, console: Console, trials: Sequence[Trial], finished: Collection[Trial]) -> None:
        self.console, self.trials = console, trials
        self.finished, self.failed = set(finished), set[Trial]()
        self.running: dict[Trial, float] = {}
        self.began, self.done_before = time.monotonic(), len(self.finished)
        self._total = Counter((trial.rule, trial.preset) for trial in trials)
        self._live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._table) if console.is_terminal else None
        )
        if finished:
            self.say(f"{len(finished)} of {len(trials)} trials were finished before and are kept")

    def __enter__(self) -> Display:
        """Start to show."""
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def say(self, text: str) -> None:
        """Print a line as it is, without markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, event: TrialEvent) -> None:
        """Show a change of a trial's state."""
        if event.kind == "progress":
            self.running[event.trial] = event.share
            return
        self.running.pop(event.trial, None)
        (self.finished if event.kind == "done" else self.failed).add(event.trial)
        if event.kind == "failed":
            self.say(f"failed: {event.trial.name}: {event.error}")
        done, every = len(self.finished) + len(self.failed), max(len(self.trials) // LOG_LINES, 1)
        if self._live is None and (done % every == 0 or done == len(self.trials)):
            self.say(f"{done} of {len(self.trials)} trials, {self._left()}")

    def _left(self) -> str:
        done = len(self.finished) + len(self.failed) - self.done_before + sum(self.running.values())
        seconds = time.monotonic() - self.began
        if not done:
            return "just started"
        left = (len(self.trials) - self.done_before - done) / done * seconds
        return f"{seconds:.0f} s gone, about {left:.0f} s left"

    def _table(self) -> RenderableType:
        presets = list(dict.fromkeys(trial.preset for trial in self.trials))
        table = Table("rule", *presets, box=None, pad_edge=False, header_style="dim")
        for rule in dict.fromkeys(trial.rule for trial in self.trials):
            table.add_row(Text(rule), *(self._state(rule, preset) for preset in presets))
        done = len(self.finished) + len(self.failed)
        bar = ProgressBar(total=len(self.trials), completed=done + sum(self.running.values()), width=40)
        return Group(table, bar, Text(f" {done}/{len(self.trials)} trials, {self._left()}", style="dim"))

    def _state(self, rule: str, preset: str) -> Text:
        def here(trials: set[Trial] | dict[Trial, float]) -> int:
            return sum((trial.rule, trial.preset) == (rule, preset) for trial in trials)

        total, done, failed = self._total[rule, preset], here(self.finished), here(self.failed)
        if failed:
            return Text(f"{failed} failed", style="red")
        if done == total:
            return Text("done", style="green")
        return Text(f"{done}/{total}", style="bold" if here(self.running) else "dim")


def ranking_table(ranking: Sequence[RankedRule], presets: Sequence[str], title: str, width: int = 120) -> Group:
    """The ranking for a terminal, under its title; green and ▲: an interval lies above uniform, red and ▼: below.

    Where the terminal is too narrow for all intervals, the presets are shown without theirs: a figure is never cut.
    """
    names = (ALL, *presets)
    rule_width = min(max(len(ranked.rule) for ranked in ranking), _NAME_WIDTH)
    wide = rule_width + len(names) * (_FIGURE_WIDTH + 1) <= width
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rule", min_width=min(rule_width, 12))
    for name in names:  # of a trace's path, the end
        heading = name if len(name) <= _FIGURE_WIDTH else f"…{name[1 - _FIGURE_WIDTH :]}"
        table.add_column(heading, justify="right", no_wrap=True)
    for ranked in ranking:
        relative = ranked.rule != BASELINE
        figures = ranked.ahead if relative else ranked.level
        row = [_figure(figures[name], relative, interval=wide or name == ALL) for name in names]
        table.add_row(Text(ranked.rule, overflow="fold"), *row)
    return Group(Text(title, style="italic"), table)  # a table's own title would be folded to the table's width


def _figure(figure: Estimate, relative: bool, interval: bool) -> Text:
    if np.isnan(figure.mean):
        return Text("-", style="dim")
    within = f" ±{figure.half:.4f}" if interval and not np.isnan(figure.half) else ""
    if not relative:
        return Text(f"{figure.mean:.4f}{within}  ", style="bold")
    mark, style = {1: ("▲", "green"), -1: ("▼", "red"), 0: (" ", "")}[figure.sign]
    return Text(f"{figure.mean:+.4f}{within} {mark}", style=style)
