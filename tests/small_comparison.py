"""A comparison small enough for a test, with names that try to break out of the page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import polars as pl

from knapsack_rl.compare.cell import run_cell
from knapsack_rl.compare.cells import Arena, Cell
from knapsack_rl.compare.match import Match
from knapsack_rl.compare.page import write_comparison
from knapsack_rl.compare.results import Results
from knapsack_rl.compare.workers import News

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PRESETS = ("balanced", "hard")
SEEDS = (0, 1, 2)
ARENA = Arena(prompts=128, groups=16, num_generations=4, steps=24)
RULES = ("uniform", "knapsack-rl", "posterior", "oracle", "dapo", "mopps", "greso", "ar3po", EVIL)


def results(rules: tuple[str, ...] = RULES) -> Results:
    """Results of these rules; the one with the evil name is `hora` in disguise."""
    return _results(rules)


@cache  # of a default argument it would not know that it is the same as when given
def _results(rules: tuple[str, ...]) -> Results:
    frames = []
    for rule in rules:
        for preset in PRESETS:
            for seed in SEEDS:
                rows = run_cell(Cell("hora" if rule == EVIL else rule, preset, seed, ARENA))
                frames.append(rows.with_columns(rule=pl.lit(rule)))
    return Results(pl.concat(frames), rules, PRESETS, SEEDS)


def write_small_comparison(out: Path, rules: tuple[str, ...] = RULES) -> Path:
    """Its page, with a failure whose message is as evil."""
    match = Match(("uniform",), PRESETS, SEEDS, ARENA)
    failure = News(Cell(EVIL, "hard", 0, ARENA), "failed", error=f"ValueError: {EVIL}")
    return write_comparison(results(rules), match, [failure], out)
