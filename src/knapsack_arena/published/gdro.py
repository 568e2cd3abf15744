"""Rollout-GDRO (arXiv 2601.19280): bins of difficulty, and rollouts by the square root of a bin's variance.

    n_b  proportional to  sqrt(v_b),   v_b = mean of p (1 - p) in bin b,   sum of n = budget

The square root minimises the sum of v_b / n_b. The paper learns counts and a shadow price online, by a bandit with a
few actions (code: kishanpb/verl-gdro); left out here, where the budget of every step is met exactly and the price is
solved for. Bins are tenths of the estimated success rate, where the paper smooths indicators of one right answer in
eight (our reading). Degenerate cases: a bin without variance gets the least count; if none has any, all counts are
equal; prompts never seen fall into the bin of 1/2.
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.published.shares import counts_from_shares, fixed_problem
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationProblem

BINS = 10


def gdro_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Rollouts by the square root of the variance in each prompt's bin."""
    return fixed_problem(counts_from_shares(np.sqrt(bin_variances(forecast.success_rates_P)), budget, low, high))


def bin_variances(success_rates_P: FloatArray) -> FloatArray:
    """Mean of p (1 - p) over the prompts that lie in the same tenth; ``[P]``."""
    bins_P = np.minimum((success_rates_P * BINS).astype(np.int64), BINS - 1)
    sums = np.bincount(bins_P, success_rates_P * (1 - success_rates_P), BINS)
    variances_P: FloatArray = (sums / np.maximum(np.bincount(bins_P, minlength=BINS), 1))[bins_P]
    return variances_P
