"""A comparison from beginning to end: what is not finished yet runs, and everything is gathered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from rich.console import Console

from knapsack_rl.compare.cell import population, run_cell
from knapsack_rl.compare.cells import BASELINE, Arena, Cell
from knapsack_rl.compare.display import Display
from knapsack_rl.compare.results import Results, gather
from knapsack_rl.compare.workers import Job, News, Runner, Workers
from knapsack_rl.loading import resolve


@dataclass(frozen=True)
class Words:
    """What a page calls things.

    Attributes:
        command: that made it.
        preset, place: what rules are played on, to who asks for it and to who reads.
        measure: what rules are ranked by.
        oracle: what regret is counted from.
    """

    command: str = "compare"
    preset: str = "preset"
    place: str = "simulated population"
    measure: str = "mean success rate"
    oracle: str = "the oracle"


@dataclass(frozen=True)
class Contest:
    """Rules, what they are played on, and with which luck.

    Attributes:
        rules: names of entrants, or ``path.py:name``; uniform is added in front if it is missing.
        presets: what they are played on.
        seeds: each makes other luck, the same for all rules.

    Raises:
        ValueError: a rule or preset that does not exist or is named twice, or no seeds.
    """

    rules: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    results: ClassVar[type[Results]] = Results
    words: ClassVar[Words]

    def __post_init__(self) -> None:
        for kind, names in (("rule", self.rules), (self.words.preset, self.presets), ("seed", self.seeds)):
            if not names or len(set(names)) < len(names):
                raise ValueError(
                    f"name at least one {kind}, and none twice: {', '.join(map(str, names)) or 'none given'}"
                )
        if BASELINE not in self.rules:
            object.__setattr__(self, "rules", (BASELINE, *self.rules))

    @property
    def cells(self) -> list[Cell]:
        """All there is to run: seed after seed, so that a glance at half of it is a fair one."""
        names = product(self.seeds, self.presets, self.rules)
        return [self.cell(rule, preset, seed) for seed, preset, rule in names]

    def cell(self, rule: str, preset: str, seed: int) -> Cell:
        """One of them."""
        raise NotImplementedError

    @property
    def budget(self) -> str:
        """What all rules spend the same of."""
        return "rollouts"

    def runner(self) -> Runner:
        """Who runs a cell."""
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        """What all cells share, for people."""
        raise NotImplementedError


@dataclass(frozen=True)
class Match(Contest):
    """A comparison on simulated policies: presets are names of populations, or traces; seeds make other ones of a kind.

    Attributes:
        arena: what all cells share.
    """

    arena: Arena
    words: ClassVar[Words] = Words()

    def __post_init__(self) -> None:
        super().__post_init__()
        for preset in self.presets:
            population(preset, 1, 0)
        for rule in self.rules:
            setting = Cell(rule, self.presets[0], 0, self.arena).setting()
            resolve(rule, dataclasses.replace(setting, truth=lambda ids: np.zeros(len(ids))))

    def cell(self, rule: str, preset: str, seed: int) -> Cell:
        """In the arena."""
        return Cell(rule, preset, seed, self.arena)

    @property
    def budget(self) -> str:
        """The arena's."""
        return self.arena.budget

    def runner(self) -> Runner:
        """The simulator."""
        return run_cell

    def settings(self) -> dict[str, object]:
        """The arena's."""
        return dataclasses.asdict(self.arena)


def play_match(match: Contest, out: Path, workers: int, console: Console) -> tuple[Results, list[News]]:
    """Run what is not finished, and gather what is.

    Args:
        match: what is compared.
        out: folder of the cells' files; what is finished there is not run again.
        workers: processes at a time.
        console: where progress is shown.

    Returns:
        The results, and the failures.

    Raises:
        ValueError: uniform has not finished everywhere.
    """
    cells = match.cells
    files = {cell: cell.file(out) for cell in cells}  # once: a rule's file may be edited while we run
    (out / "cells").mkdir(parents=True, exist_ok=True)
    finished = {cell for cell in cells if files[cell].exists()}
    failures: list[News] = []
    with Display(console, cells, finished) as display, Workers(workers) as pool:
        # Uniform first: where the budget is in tokens, it is what uniform spends.
        for baseline in (True, False):
            part = [cell for cell in cells if (cell.rule == BASELINE) == baseline and cell not in finished]
            for news in pool.run([job for cell in part if (job := _job(cell, files, match.runner())) is not None]):
                display.take_in(news)
                failures += [news] if news.kind == "failed" else []
    by_rule = sorted(cells, key=lambda cell: match.rules.index(cell.rule))
    kept = [files[cell] for cell in by_rule if files[cell].exists()]
    return gather(kept, match.rules, match.presets, match.seeds, match.results), failures


def _job(cell: Cell, files: Mapping[Cell, Path], runner: Runner) -> Job | None:
    """How a cell is to be run; None where its budget is not known because uniform failed."""
    if cell.arena.budget == "rollouts" or cell.rule == BASELINE:
        return Job(cell, files[cell], run=runner)
    uniform = files[dataclasses.replace(cell, rule=BASELINE)]
    return Job(cell, files[cell], _tokens(uniform), runner) if uniform.exists() else None


def _tokens(file: Path) -> int:
    return int(pl.read_parquet(file, columns=["tokens"])["tokens"].max())  # type: ignore[arg-type]


def rules_named(words: str | Sequence[str]) -> tuple[str, ...]:
    """Names in a list with commas, or in a list of such lists."""
    lists = [words] if isinstance(words, str) else words
    return tuple(word.strip() for each in lists for word in each.split(",") if word.strip())
