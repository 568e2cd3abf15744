"""A comparison small enough for a test, with names that try to break out of the page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import polars as pl

from knapsack_arena.compare.experiment import simulator_experiment
from knapsack_arena.compare.page import write_comparison
from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings, run_trial
from knapsack_arena.compare.workers import TrialEvent

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PRESETS = ("balanced", "hard")
SEEDS = (0, 1, 2)
SETTINGS = TrialSettings(prompts=128, groups=16, average=4, steps=24)
RULES = ("uniform", "paper", "beta", "oracle", "dapo", "mopps", "greso", "ar3po", EVIL)


def results(rules: tuple[str, ...] = RULES) -> Results:
    """Results of these rules; the one named `EVIL` is `hora`."""
    return _results(rules)


@cache  # without default arguments, which would count as another call
def _results(rules: tuple[str, ...]) -> Results:
    frames = []
    for rule in rules:
        for preset in PRESETS:
            for seed in SEEDS:
                rows = run_trial(Trial(SIMULATOR, "hora" if rule == EVIL else rule, preset, seed, SETTINGS))
                frames.append(rows.with_columns(rule=pl.lit(rule)))
    return Results(pl.concat(frames), rules, PRESETS, SEEDS)


def write_small_comparison(out: Path, rules: tuple[str, ...] = RULES) -> Path:
    """Its page, with a failure whose message has the same markup."""
    experiment = simulator_experiment(("uniform",), PRESETS, SEEDS, SETTINGS)
    failure = TrialEvent(Trial(SIMULATOR, EVIL, "hard", 0, SETTINGS), "failed", error=f"ValueError: {EVIL}")
    return write_comparison(results(rules), experiment, [failure], out)
