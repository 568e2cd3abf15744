"""Rollout-GDRO (arXiv 2601.19280): bins of like difficulty, and rollouts by the square root of a bin's variance.

    n_b  proportional to  sqrt(v_b),   v_b = mean of p (1 - p) in bin b,   sum of n = budget

The square root is what minimises the sum of v_b / n_b. The paper learns counts and a shadow price online, by a bandit
over a few arms (code: kishanpb/verl-gdro); left out here, where the budget of every step is to be met exactly and the
price is solved for. Bins are tenths of the estimated success rate, where the paper smooths indicators of one right
answer in eight (our reading). Degenerate cases: a bin without variance gets the least; if none has any, all are
alike; prompts never seen fall into the bin of 1/2.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.allocator import Offer
from knapsack_rl.beliefs import Forecast
from knapsack_rl.notation import FloatArray
from knapsack_rl.rivals.shares import counts_from_shares, fixed_offer

BINS = 10


def gdro_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Rollouts by the square root of the variance in each prompt's bin."""
    return fixed_offer(counts_from_shares(np.sqrt(bin_variances(forecast.success_rates_P)), budget, low, high))


def bin_variances(success_rates_P: FloatArray) -> FloatArray:
    """Mean of p (1 - p) over the prompts that lie in the same tenth; ``[P]``."""
    bins_P = np.minimum((success_rates_P * BINS).astype(np.int64), BINS - 1)
    sums = np.bincount(bins_P, success_rates_P * (1 - success_rates_P), BINS)
    variances_P: FloatArray = (sums / np.maximum(np.bincount(bins_P, minlength=BINS), 1))[bins_P]
    return variances_P
