"""Regimes of a model of three thousand weights, for tests of the laboratory."""

from __future__ import annotations

from knapsack_arena.lab.regimes import Regime, skills
from knapsack_rl.tasks.embedded import taught
from knapsack_rl.tasks.recipe import Recipe

RECIPE = Recipe(hidden=16, layers=1, heads=2, intermediate=32, steps=60, batch=64, learning_rate=1e-2)


def tiny() -> Regime:
    """64 prompts, 4 groups of 4, 3 steps."""
    full = skills(64, 16)
    return Regime("tiny", full.train, full.heldout, taught, RECIPE, groups=4, average=4, steps=3)
