"""What there is to run in the laboratory: one rule on one regime with one seed, and all that a run begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import polars as pl
from transformers.utils import logging

from knapsack_rl.compare.cell import Course, Progress, play_cell
from knapsack_rl.compare.cells import Arena, Cell
from knapsack_rl.lab.meter import LabMeter, Watched
from knapsack_rl.lab.regimes import REGIMES, Regime
from knapsack_rl.lab.world import LanguageModelWorld, Loss
from knapsack_rl.loading import resolve, run_file

# How a rule's rollouts become an update, written behind its name: ``calibrated@prompt``.
LOSSES: Final[Mapping[str, Loss]] = {
    "rollout": Loss(),
    "prompt": Loss("prompt"),
    "unscaled": Loss(scaled=False),
    "prompt-unscaled": Loss("prompt", scaled=False),
}
# Prompts whose rates are averaged, and points of a run where they are: exact rates cost what rollouts cost, and
# measuring is to take less than a quarter of a run.
FOLLOWED: Final = 500
POINTS: Final = 20
# Steps from one that is held against the truth to the next, in data sets of at most so many prompts and beyond.
_LARGE, _EVERY, _EVERY_OF_LARGE = 2000, 5, 10


@dataclass(frozen=True)
class LabCell(Cell):
    """One rule on one regime with one seed: the preset is the regime's name, the rule may end in ``@`` and a loss."""

    decided_beside: ClassVar[tuple[str, ...]] = (
        "lab/cells.py", "lab/meter.py", "lab/policy.py", "lab/regimes.py", "lab/world.py", "tasks",
    )  # fmt: skip


def lab_cell(rule: str, regime: str, seed: int, steps: int | None = None) -> LabCell:
    """A cell in its regime's own sizes; ``steps`` overrides how many an equal division takes."""
    found = find_regime(regime)
    arena = Arena(len(found.train), found.groups, found.num_generations, steps or found.steps)
    return LabCell(rule, regime, seed, arena)


def run_lab_cell(cell: Cell, tokens: int | None = None, progress: Progress = lambda share: None) -> pl.DataFrame:
    """`play_cell` on a language model."""
    return play_cell(cell, _begin, tokens, progress, points=POINTS)


def split_rule(rule: str) -> tuple[str, Loss]:
    """``NAME@LOSS`` taken apart; without a loss of ours at its end, all of it is the name."""
    name, at, loss = rule.rpartition("@")
    return (name, LOSSES[loss]) if at and loss in LOSSES else (rule, Loss())


@cache
def find_regime(name: str) -> Regime:
    """The regime of this name, or what ``path.py:name`` is: a regime, or a function that makes it.

    Raises:
        ValueError: no such regime.
    """
    if name in REGIMES:
        return REGIMES[name]()
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise ValueError(
            f"there is no regime {name!r}: choose from {', '.join(REGIMES)}, or give one of your own as FILE.py:NAME"
        )
    thing = getattr(run_file(Path(path)), attribute, None)
    found = thing() if callable(thing) else thing
    if not isinstance(found, Regime):
        raise ValueError(f"{name} is {found!r}, and no regime: name a knapsack_rl.lab.regimes.Regime, or what makes it")
    return found


def _begin(cell: Cell) -> Course:
    """A base model before its first step, and a rule that has met nothing."""
    logging.disable_progress_bar()  # a bar for each model that a worker loads would tear up the display
    name, loss = split_rule(cell.rule)
    regime = find_regime(cell.preset)
    world = Watched(LanguageModelWorld(regime, cell.seed, loss))
    setting = dataclasses.replace(cell.setting(), truth=world.success_rates, features=world.hidden_states)
    every = _EVERY_OF_LARGE if len(regime.train) > _LARGE else _EVERY
    strategy = resolve(name, setting)
    world.overhear(strategy)
    return Course(world, strategy, LabMeter(world, cell.arena.groups, _followed(regime), every))


def _followed(regime: Regime) -> tuple[str, ...] | None:
    """Prompts whose true rates are averaged: the same sample for all rules and seeds; None for all prompts."""
    ids = [item.prompt for item in regime.train]
    if len(ids) <= FOLLOWED:
        return None
    return tuple(ids[row] for row in np.sort(np.random.default_rng(0).choice(len(ids), FOLLOWED, replace=False)))
