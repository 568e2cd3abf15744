"""What came of the cells: their tables as one, and curves on a common grid of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import polars as pl

from knapsack_rl.compare.cells import BASELINE, ORACLE
from knapsack_rl.compare.meter import SCHEMA
from knapsack_rl.files import replacing
from knapsack_rl.notation import FloatArray

GRID: Final = np.linspace(0.0, 1.0, 101)
CURVES: Final = (
    "mean_p", "held_out_p", "hard_quarter_p", "coverage", "mixed_prompts", "mixed_rollouts", "mixed_groups",
    "belief_error", "brier", "seconds",
)  # fmt: skip
SPENT: Final = ("steps", "rollouts", "tokens", "rounds")


@dataclass(frozen=True, eq=False)
class Results:
    """The cells of a comparison that finished. R rules, P presets, S seeds, G points of the grid.

    Attributes:
        frame: all rows, in the columns of `meter`.
        rules, presets, seeds: in the order they were asked for; rules of which no cell finished are left out.
    """

    frame: pl.DataFrame
    rules: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    # What rules are ranked by, and the rule that regret is counted from.
    measure: ClassVar[str] = "mean_p"
    oracle: ClassVar[str] = ORACLE

    @cached_property
    def curves(self) -> dict[str, FloatArray]:
        """Each metric along the budget, between points on the straight line, ``[R, P, S, G]``; NaN where there is none.

        Also what was spent: `steps`, `rollouts`, `tokens` and `rounds`. All cells are read at exactly the same share of
        the budget, although none stops exactly there.
        """
        shape = (len(self.rules), len(self.presets), len(self.seeds), GRID.size)
        points = self.frame.filter(pl.col("point").is_not_null(), pl.col("x").is_null())
        more = points["metric"].unique(maintain_order=True).to_list()
        found = {name: np.full(shape, np.nan) for name in dict.fromkeys((*CURVES, *more, *SPENT))}
        for key, rows in points.partition_by("rule", "preset", "seed", "metric", as_dict=True).items():
            rule, preset, seed, metric = key
            at = (self.rules.index(rule), self.presets.index(preset), self.seeds.index(seed))
            spent = rows["spent"].to_numpy()
            found[metric][at] = np.interp(GRID, spent, rows["value"].to_numpy())
            if metric == "mean_p":
                for name in SPENT:
                    found[name][at] = np.interp(GRID, spent, rows[name].to_numpy())
        return found

    def end(self, metric: str) -> FloatArray:
        """The metric when exactly the budget is spent, ``[R, P, S]``."""
        return self.curves[metric][..., -1]

    @cached_property
    def area(self) -> FloatArray:
        """Mean of the measure over the budget: the area under its learning curve, ``[R, P, S]``."""
        return np.asarray(np.trapezoid(self.curves[self.measure], GRID, axis=-1), dtype=np.float64)

    @cached_property
    def regret(self) -> FloatArray | None:
        """How far the measure ends below the oracle's on the same seed, ``[R, P, S]``; None without the oracle."""
        if self.oracle not in self.rules:
            return None
        end = self.end(self.measure)
        regret: FloatArray = end[self.rules.index(self.oracle)] - end
        return regret

    @cached_property
    def share_to_uniform(self) -> FloatArray:
        """Share of the budget after which the measure is where uniform's ends; NaN if it never is, ``[R, P, S]``."""
        curves = self.curves[self.measure]
        goal = curves[self.rules.index(BASELINE), ..., -1]
        found = np.full(curves.shape[:-1], np.nan)
        for at in np.ndindex(found.shape):
            found[at] = first_reach(curves[at], float(goal[at[1:]]))
        return found


def first_reach(curve: FloatArray, goal: float) -> float:
    """Where on the grid a curve first reaches a goal, between points on the straight line; NaN if it never does."""
    reached = np.flatnonzero(curve >= goal)
    if not reached.size:
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return 0.0
    part = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(GRID[i - 1] + part * (GRID[i] - GRID[i - 1]))


def gather(
    files: Sequence[Path],
    rules: Sequence[str],
    presets: Sequence[str],
    seeds: Sequence[int],
    kind: type[Results] = Results,
) -> Results:
    """The results in cells' files, with rows for what is only known beside the others.

    Raises:
        ValueError: uniform has not finished on every preset and seed: there is nothing to compare with.
    """
    frame = pl.concat([pl.read_parquet(file) for file in files]) if files else pl.DataFrame(schema=SCHEMA)
    present = set(frame["rule"].unique())
    wanted = frame.filter(pl.col("rule") == BASELINE).select("preset", "seed").n_unique()
    if wanted != len(presets) * len(seeds):
        raise ValueError(f"{BASELINE} has not finished on every preset and seed: nothing to compare with")
    results = kind(frame, tuple(rule for rule in rules if rule in present), tuple(presets), tuple(seeds))
    return kind(pl.concat([frame, _beside(results)]), results.rules, results.presets, results.seeds)


def write_results(results: Results, out: Path) -> None:
    """One Parquet file with all rows, all or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        results.frame.write_parquet(file)


def _beside(results: Results) -> pl.DataFrame:
    """Rows `area`, `regret` and `share_to_uniform` of each cell."""
    tables = {"area": results.area, "share_to_uniform": results.share_to_uniform}
    if results.regret is not None:
        tables["regret"] = results.regret
    rows = []
    for metric, table in tables.items():
        for r, p, s in np.argwhere(~np.isnan(table)):
            cell = (results.rules[r], results.presets[p], results.seeds[s])
            spent = (int(results.curves[name][r, p, s, -1]) for name in SPENT)
            rows.append((*cell, None, 1.0, *spent, metric, None, None, float(table[r, p, s])))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
