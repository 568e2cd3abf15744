"""E3-RL4LLMs' rank rule: rollouts beyond the least count, linear in a prompt's rank of difficulty within the step.

    n_i = n_min + (C - B n_min) * rank_i / sum of ranks

for B prompts and C rollouts, where the prompt with the lowest mean reward has rank B and the best rank 1
(``get_rollout_n_per_prompt`` in LiaoMengqi/E3-RL4LLMs @7e90b8e). Our reading in four points: their ranks are over the
whole data set, once an epoch, and here over the step; their means are over all rewards ever seen, and here the latest;
equal means share the mean of their ranks; and prompts never seen get the least count (equal counts while none was
seen). Their script trains an epoch at 8 each, then within 6..10, then 4..12; here the limits are the configured ones.
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.published.shares import extra_by_shares, fixed_problem
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationProblem


def e3_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Rollouts by rank of difficulty; equal counts while no prompt was seen."""
    ranks_P = np.zeros(forecast.seen_P.size)
    ranks_P[forecast.seen_P] = ranks(forecast.success_rates_P[forecast.seen_P])
    return fixed_problem(extra_by_shares(ranks_P, budget, low, high))


def ranks(success_rates_P: FloatArray) -> FloatArray:
    """1 for the easiest prompt to P for the hardest; equal ones share the mean of their ranks; ``[P]``."""
    _, place_P, times = np.unique(-success_rates_P, return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    mean: FloatArray = last - (times - 1) / 2
    ranks_P: FloatArray = mean[place_P]
    return ranks_P
