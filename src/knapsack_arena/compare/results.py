"""Results of an experiment: the rows of all trials as one table, and curves on a common grid of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.trials import BASELINE, ORACLE
from knapsack_rl.files import replacing
from knapsack_rl.notation import FloatArray

GRID: Final = np.linspace(0.0, 1.0, 101)
CURVES: Final = (
    "mean_p", "held_out_p", "hard_quarter_p", "coverage", "mixed_prompts", "mixed_rollouts", "mixed_groups",
    "belief_error", "brier", "log_score", "seconds",
)  # fmt: skip
SPENT: Final = ("steps", "rollouts", "tokens", "rounds")
# Means of equal rates differ in their last digits; a level monotone curve reaches its end at its first point.
ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Scoring:
    """How rules are ranked.

    Attributes:
        measure: metric that rules are ranked by.
        oracle: rule that regret is counted from.
        monotone: whether learning curves are made monotone (`isotonic`) before `Results.share_to_uniform` is read off
            them: a noisy curve touches a line early by chance.
    """

    measure: str = "mean_p"
    oracle: str = ORACLE
    monotone: bool = False


@dataclass(frozen=True, eq=False)
class Results:
    """The finished trials of an experiment. R rules, P presets, S seeds, G points of the grid.

    Attributes:
        frame: all rows, in the columns of `metrics.SCHEMA`.
        rules, presets, seeds: in the order of the experiment; rules without a finished trial are left out.
        scoring: how rules are ranked.
    """

    frame: pl.DataFrame
    rules: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    scoring: Scoring = field(default_factory=Scoring)

    @cached_property
    def curves(self) -> dict[str, FloatArray]:
        """Each metric along the budget, linear between points, ``[R, P, S, G]``; NaN where there is none.

        Also what was spent: `steps`, `rollouts`, `tokens` and `rounds`. All trials are read at exactly the same share
        of the budget, although none stops exactly there.
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

    def mean_over_run(self, metric: str) -> FloatArray:
        """The metric, averaged over the budget where it is known, ``[R, P, S]``."""
        curves = self.curves[metric]
        known = ~np.isnan(curves)
        sums = np.where(known, curves, 0.0).sum(axis=-1)
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / known.sum(axis=-1), dtype=np.float64)

    @cached_property
    def area(self) -> FloatArray:
        """Mean of the measure over the budget: the area under its learning curve, ``[R, P, S]``."""
        return np.asarray(np.trapezoid(self.curves[self.scoring.measure], GRID, axis=-1), dtype=np.float64)

    @cached_property
    def regret(self) -> FloatArray | None:
        """How far the measure ends below the oracle's on the same seed, ``[R, P, S]``; None without the oracle."""
        if self.scoring.oracle not in self.rules:
            return None
        end = self.end(self.scoring.measure)
        regret: FloatArray = end[self.rules.index(self.scoring.oracle)] - end
        return regret

    @cached_property
    def share_to_uniform(self) -> FloatArray:
        """Share of the budget after which the measure reaches uniform's final value; NaN if never, ``[R, P, S]``.

        With monotone curves, uniform itself may be below 1, where it stopped learning before its end.
        """
        curves, tolerance = self.curves[self.scoring.measure], 0.0
        if self.scoring.monotone:
            curves, tolerance = np.apply_along_axis(isotonic, -1, curves), ROUNDING
        goal = curves[self.rules.index(BASELINE), ..., -1]
        found = np.full(curves.shape[:-1], np.nan)
        for at in np.ndindex(found.shape):
            found[at] = first_reach(curves[at], float(goal[at[1:]]) - tolerance)
        return found


def first_reach(curve: FloatArray, goal: float, at: FloatArray = GRID) -> float:
    """Where a curve over the points ``at``, linear between them, first reaches a goal; NaN if it never does."""
    reached = np.flatnonzero(curve >= goal)
    if not reached.size:
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return float(at[0])
    part = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(at[i - 1] + part * (at[i] - at[i - 1]))


def isotonic(values: FloatArray) -> FloatArray:
    """The non-decreasing curve closest in squares (pool adjacent violators); all NaN if any value is."""
    if np.isnan(values).any():
        return np.full(values.shape, np.nan)
    blocks: list[tuple[float, int]] = []  # mean and size
    for value in values.tolist():
        mean, size = value, 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])


def gather(
    files: Sequence[Path],
    rules: Sequence[str],
    presets: Sequence[str],
    seeds: Sequence[int],
    scoring: Scoring | None = None,
) -> Results:
    """The results in trials' files, with rows for the metrics relative to other trials.

    Raises:
        ValueError: uniform has not finished on every preset and seed: there is nothing to compare with.
    """
    frame = pl.concat([pl.read_parquet(file) for file in files]) if files else pl.DataFrame(schema=SCHEMA)
    present = set(frame["rule"].unique())
    wanted = frame.filter(pl.col("rule") == BASELINE).select("preset", "seed").n_unique()
    if wanted != len(presets) * len(seeds):
        raise ValueError(f"{BASELINE} has not finished on every preset and seed: nothing to compare with")
    shown = tuple(rule for rule in rules if rule in present)
    results = Results(frame, shown, tuple(presets), tuple(seeds), scoring or Scoring())
    whole = pl.concat([frame, _relative(results)])
    return Results(whole, results.rules, results.presets, results.seeds, results.scoring)


def write_results(results: Results, out: Path) -> None:
    """Write all rows to one Parquet file, all or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        results.frame.write_parquet(file)


def _relative(results: Results) -> pl.DataFrame:
    """Rows `area`, `regret` and `share_to_uniform` of each trial."""
    tables = {"area": results.area, "share_to_uniform": results.share_to_uniform}
    if results.regret is not None:
        tables["regret"] = results.regret
    rows = []
    for metric, table in tables.items():
        for r, p, s in np.argwhere(~np.isnan(table)):
            trial = (results.rules[r], results.presets[p], results.seeds[s])
            spent = (int(results.curves[name][r, p, s, -1]) for name in SPENT)
            rows.append((*trial, None, 1.0, *spent, metric, None, None, float(table[r, p, s])))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
