"""Statistics of a comparison over regimes and seeds, as Agarwal et al. (arXiv 2108.13264) recommend them.

Scores are ``[S, R]``: seeds by regimes, one run each, normalised so that regimes can be pooled. Tests hold the
estimators to the authors' package ``rliable``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray

REPLICATIONS = 50_000


def normalised(scores_S_R: FloatArray, uniform_S_R: FloatArray, oracle_S_R: FloatArray) -> FloatArray:
    """Scores with, in each regime, the mean of uniform at 0 and the mean of the oracle at 1; ``[S, R]``.

    Args:
        scores_S_R: of a rule; the larger the better, or the smaller for all three.
        uniform_S_R, oracle_S_R: of uniform and the oracle, in the same regimes.

    Raises:
        ValueError: a regime in which uniform and the oracle are level, so that it has no scale.
    """
    zero_R, one_R = uniform_S_R.mean(axis=0), oracle_S_R.mean(axis=0)
    if (zero_R == one_R).any():
        level = np.flatnonzero(zero_R == one_R).tolist()
        raise ValueError(f"uniform and the oracle are level in regimes {level}: leave these regimes out")
    found: FloatArray = (scores_S_R - zero_R) / (one_R - zero_R)
    return found


def interquartile_mean(scores_S_R: FloatArray) -> float:
    """Mean of the middle half of all scores; of n scores, int(n / 4) are left out at each end."""
    ordered = np.sort(scores_S_R, axis=None)
    cut = int(ordered.size / 4)
    return float(ordered[cut : ordered.size - cut].mean())


def probability_of_improvement(x_S_R: FloatArray, y_T_R: FloatArray) -> float:
    """Mean over regimes of P(X > Y) + P(X = Y) / 2 for two runs drawn at random (Mann and Whitney's U / S T)."""
    x, y = x_S_R[:, None, :], y_T_R[None, :, :]
    return float(((x > y) + 0.5 * (x == y)).mean(axis=(0, 1)).mean())


def stratified_bootstrap(
    statistic: Callable[..., float],
    *scores_S_R: FloatArray,
    level: float = 0.95,
    replications: int = REPLICATIONS,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic: seeds are drawn with replacement within each regime, and for each rule.

    Args:
        statistic: of one or several arrays of scores.
        *scores_S_R: the arrays.
        level: probability that the interval covers.
        replications: how often seeds are drawn.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    found = np.empty(replications)
    for i in range(replications):
        drawn = [
            np.take_along_axis(scores, random.integers(len(scores), size=scores.shape), axis=0) for scores in scores_S_R
        ]
        found[i] = statistic(*drawn)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for the number of claims (Holm, 1979), by claim, in the order given.

    In ascending order the k-th of m (from 0) is multiplied by m - k; then none is below an earlier one or above 1.
    """
    ordered = sorted(p_values, key=lambda claim: p_values[claim])
    adjusted, least = {}, 0.0
    for k, claim in enumerate(ordered):
        least = min(max(least, (len(ordered) - k) * p_values[claim]), 1.0)
        adjusted[claim] = least
    return {claim: adjusted[claim] for claim in p_values}


def restricted_mean(times_R: FloatArray, reached_R: BoolArray, horizon: float) -> float:
    """Mean of min(time, ``horizon``) where some runs ended before they reached the target.

    The area under Kaplan and Meier's estimate of the share of runs that have not reached it, from 0 to the horizon.
    Without such runs it is the mean of min(time, horizon).

    Args:
        times_R: when each run reached the target, or ended without, ``[R]``; not negative.
        reached_R: whether it reached it, ``[R]``.
        horizon: the end of the area.

    Raises:
        ValueError: no run, or all that are left end before the horizon without having reached the target, so that the
            area to it is unknown.
    """
    if not times_R.size:
        raise ValueError("there is no run: pass at least one")
    area, share, now = 0.0, 1.0, 0.0
    for time in np.unique(times_R[reached_R & (times_R < horizon)]).tolist():
        area, now = area + share * (time - now), time
        share *= 1 - np.count_nonzero(reached_R & (times_R == time)) / np.count_nonzero(times_R >= time)
    if share > 0 and times_R.max() < horizon:
        raise ValueError(
            f"the longest run ends at {times_R.max():g} without the target, before the horizon {horizon:g}: use a "
            "horizon up to which some run was observed"
        )
    return area + share * (horizon - now)
