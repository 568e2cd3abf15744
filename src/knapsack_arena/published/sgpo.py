"""sGPO (arXiv 2606.08854): the expected number of rollouts until one succeeds, n = 1 / p.

The paper takes p from an offline profile; here it is the latest estimate. The numbers are used as shares, so that the
budget is met exactly. Degenerate cases, our readings: p = 0 counts as p = 1 / max_count; prompts never seen count as
p = 1/2.
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.published.shares import counts_from_shares, fixed_problem
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.rules import AllocationProblem


def sgpo_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Rollouts in proportion to 1 / p."""
    return fixed_problem(counts_from_shares(1 / np.maximum(forecast.success_rates_P, 1 / high), budget, low, high))
