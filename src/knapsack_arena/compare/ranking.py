"""Statistics of an experiment: paired differences from uniform with Student's t intervals, and the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import BASELINE, ORACLE
from knapsack_rl.notation import FloatArray

# Student's t, 97.5 % quantile, for 1, 2, 3 ... degrees of freedom; the last serves for all beyond, a little too wide.
T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
ALL = "all presets"
# Rules that are given the true success rates: measured beside the others, and excluded from the ranks.
ORACLES: Final = (ORACLE, "oracle-pool")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval.

    Attributes:
        mean: of the seeds.
        half: half the width of the interval; NaN with fewer than two seeds.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 where the whole interval lies above 0, -1 where below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: FloatArray) -> Estimate:
    """Student's 95 % interval for the mean of independent values; NaN values are left out."""
    known = values[~np.isnan(values)]
    if not known.size:
        return Estimate(float("nan"), float("nan"), 0)
    if known.size < 2:
        return Estimate(float(known.mean()), float("nan"), 1)
    quantile = T_975[min(known.size - 1, len(T_975)) - 1]
    return Estimate(float(known.mean()), float(quantile * known.std(ddof=1) / np.sqrt(known.size)), int(known.size))


@dataclass(frozen=True)
class RankedRule:
    """A rule in the ranking.

    Attributes:
        rule: its name.
        ahead: difference from uniform at the same budget and on the same seeds, by preset and for `ALL` of them.
        level: the measure itself, likewise.
        complete: whether all its trials finished.
    """

    rule: str
    ahead: dict[str, Estimate]
    level: dict[str, Estimate]
    complete: bool


def is_oracle(rule: str) -> bool:
    """Whether a rule is given the true success rates, with any loss of the laboratory (``rule@loss``)."""
    return rule.partition("@")[0] in ORACLES


def rank(results: Results, measure: FloatArray | None = None) -> list[RankedRule]:
    """Rank rules by the mean over presets of how far they end ahead of uniform, best first.

    A rule that did not finish everywhere comes last: its mean is over other presets or seeds than that of the others.

    Args:
        results: what to rank.
        measure: ``[R, P, S]``; by default the results' own measure, when the budget is spent.
    """
    values = results.end(results.scoring.measure) if measure is None else measure
    ahead = values - values[results.rules.index(BASELINE)]
    ranking = [
        RankedRule(rule, _by_preset(ahead[r], results.presets), _by_preset(values[r], results.presets),
                   not np.isnan(values[r]).any())
        for r, rule in enumerate(results.rules)
    ]  # fmt: skip
    return sorted(ranking, key=_order)


def _order(ranked: RankedRule) -> tuple[bool, float]:
    mean = ranked.ahead[ALL].mean
    return not ranked.complete, float("inf") if np.isnan(mean) else -mean


def _by_preset(values_PS: FloatArray, presets: Sequence[str]) -> dict[str, Estimate]:
    found = {preset: estimate(values) for preset, values in zip(presets, values_PS, strict=True)}
    # Mean over presets first: presets are fixed, and only seeds are random.
    return found | {ALL: estimate(values_PS.mean(axis=0))}
