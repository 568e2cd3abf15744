"""What came of the laboratory's cells: held-out success rates count, and rollouts saved are read from smooth curves."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from knapsack_rl.compare.cells import BASELINE
from knapsack_rl.compare.ranking import Estimate, estimate
from knapsack_rl.compare.results import Results, first_reach
from knapsack_rl.notation import FloatArray

# Means of equal rates differ in their last digits, and a curve that is level is at its end from the first of them on.
ROUNDING = 1e-9


class LabResults(Results):
    """The cells of the laboratory that finished; presets are regimes."""

    measure: ClassVar[str] = "held_out_p"
    oracle: ClassVar[str] = "oracle-pool"

    @cached_property
    def share_to_uniform(self) -> FloatArray:
        """Share of the budget after which the held-out rate is where uniform's ends; NaN if never, ``[R, P, S]``.

        Both curves are made monotone first (`isotonic`): the first time that a noisy curve touches a line comes early
        by luck. So uniform itself may be where it ends before it ends, where it learned no more.
        """
        curves = np.apply_along_axis(isotonic, -1, self.curves[self.measure])
        goal = curves[self.rules.index(BASELINE), ..., -1]
        found = np.full(curves.shape[:-1], np.nan)
        for at in np.ndindex(found.shape):
            found[at] = first_reach(curves[at], float(goal[at[1:]]) - ROUNDING)
        return found

    @property
    def rollouts_to_uniform(self) -> FloatArray:
        """`share_to_uniform`, and 1 where a rule that finished never got there: its whole budget, at least."""
        finished = ~np.isnan(self.end(self.measure))
        share = self.share_to_uniform
        found: FloatArray = np.where(finished & np.isnan(share), 1.0, share)
        return found

    def mean_over_run(self, metric: str) -> FloatArray:
        """The metric, averaged over the budget where it is known, ``[R, P, S]``."""
        curves = self.curves[metric]
        known = ~np.isnan(curves)
        sums = np.where(known, curves, 0.0).sum(axis=-1)
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / known.sum(axis=-1), dtype=np.float64)

    def lead_share(self, rule: str, regime: str) -> Estimate | None:
        """How much of the oracle's lead over uniform a rule has, by area under the curve; None without the oracle.

        A ratio of means over seeds; its interval is that of the residuals, divided by the oracle's mean lead (the delta
        method).
        """
        if self.oracle not in self.rules:
            return None
        area = self.area[:, self.presets.index(regime)]
        uniform = area[self.rules.index(BASELINE)]
        lead, most = area[self.rules.index(rule)] - uniform, area[self.rules.index(self.oracle)] - uniform
        known = ~np.isnan(lead + most)
        if not known.any() or most[known].mean() == 0:
            return Estimate(float("nan"), float("nan"), 0)
        ratio = lead[known].mean() / most[known].mean()
        return estimate(ratio + (lead[known] - ratio * most[known]) / most[known].mean())


def isotonic(values: FloatArray) -> FloatArray:
    """The rising curve closest to these values in squares (pool adjacent violators); all NaN stays so."""
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
