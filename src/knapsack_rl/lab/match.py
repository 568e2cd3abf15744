"""What is compared in the laboratory, checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from transformers.utils import logging

from knapsack_rl.compare.cells import Cell
from knapsack_rl.compare.match import Contest, Words
from knapsack_rl.compare.results import Results
from knapsack_rl.compare.workers import Runner
from knapsack_rl.lab.cells import find_regime, lab_cell, run_lab_cell, split_rule
from knapsack_rl.lab.results import LabResults
from knapsack_rl.loading import resolve


@dataclass(frozen=True)
class LabMatch(Contest):
    """A comparison on language models: presets are names of regimes, or ``path.py:name``.

    A seed is the order of the prompts, all sampling, and whatever the rule draws; the base model is the same for all.

    Attributes:
        steps: that an equal division takes; by default what each regime says.
    """

    steps: int | None = None
    results: ClassVar[type[Results]] = LabResults
    words: ClassVar[Words] = Words(
        "lab", "regime", "regime", "held-out success rate", "oracle-pool, the oracle over a pool of candidates"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for regime in self.presets:
            find_regime(regime)
        for rule in self.rules:
            setting = self.cell(rule, self.presets[0], self.seeds[0]).setting()
            known = dataclasses.replace(
                setting, truth=lambda ids: np.zeros(len(ids)), features=lambda ids: np.zeros((len(ids), 1))
            )
            resolve(split_rule(rule)[0], known)

    def cell(self, rule: str, preset: str, seed: int) -> Cell:
        """In the laboratory."""
        return lab_cell(rule, preset, seed, self.steps)

    def runner(self) -> Runner:
        """A language model."""
        return run_lab_cell

    def settings(self) -> dict[str, object]:
        """Each regime's sizes."""
        return {regime: self._sizes(regime) for regime in self.presets}

    def build_base_models(self, say: Callable[[str], None]) -> None:
        """Make the base models that the cache lacks, before workers would each make their own.

        Args:
            say: told what is made, and where it lies.
        """
        logging.disable_progress_bar()
        for name in self.presets:
            say(f"{name}: base model {_built(name, say)}")

    def _sizes(self, regime: str) -> str:
        arena = self.cell(self.rules[0], regime, self.seeds[0]).arena
        return (
            f"{arena.prompts:,} prompts, {arena.groups} x {arena.num_generations} rollouts a step,"
            f" {arena.steps} steps of uniform, {arena.rollouts:,} rollouts"
        )


def _built(name: str, say: Callable[[str], None]) -> Path:
    def progress(done: int, steps: int) -> None:
        if done % max(steps // 4, 1) == 0:
            say(f"{name}: warm start of the base model, step {done} of {steps}")

    return find_regime(name).base_model(progress)
