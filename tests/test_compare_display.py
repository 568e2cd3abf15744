"""Output while an experiment runs: a live table in a terminal, and few lines in a log."""

from __future__ import annotations

import io
import re
from itertools import product

import pytest
from rich.console import Console

from knapsack_arena.compare.display import LOG_LINES, Display
from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings
from knapsack_arena.compare.workers import TrialEvent

SETTINGS = TrialSettings(64, 8, 4, 10)


def _trials(seeds: int) -> list[Trial]:
    names = product(range(seeds), ("easy", "hard"), "ab")
    return [Trial(SIMULATOR, rule, preset, seed, SETTINGS) for seed, preset, rule in names]


def _shown(console: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def test_a_terminal_shows_every_rule_and_preset_a_bar_and_what_is_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=90)
    trials = _trials(seeds=2)
    with Display(console, trials, trials[:1]) as display:
        display.show(TrialEvent(trials[1], "done", 1.0))
        display.show(TrialEvent(trials[2], "progress", 0.5))
        display.show(TrialEvent(trials[3], "failed", error="ValueError: [red]no[/red]"))
    shown = _shown(console)
    assert "1 of 8 trials were finished before and are kept" in shown
    assert "failed: b on hard, seed 0: ValueError: [red]no[/red]" in shown
    last = shown[shown.rindex("rule") :].splitlines()
    assert [line.split() for line in last[:3]] == [
        ["rule", "easy", "hard"], ["a", "1/2", "0/2"], ["b", "1/2", "1", "failed"],
    ]  # fmt: skip
    assert re.fullmatch(r"[━╸╺]+ 3/8 trials, \d+ s gone, about \d+ s left", last[3].strip())


@pytest.mark.parametrize("seeds", [1, 100])
def test_a_log_gets_a_line_now_and_then(seeds: int) -> None:
    console = Console(file=io.StringIO(), width=90)
    trials = _trials(seeds)
    with Display(console, trials, ()) as display:
        for trial in trials:
            display.show(TrialEvent(trial, "progress", 0.3))
            display.show(TrialEvent(trial, "done", 1.0))
    lines = _shown(console).splitlines()
    assert len(lines) == min(len(trials), LOG_LINES)
    assert lines[-1].startswith(f"{len(trials)} of {len(trials)} trials, ")
