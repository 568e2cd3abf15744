"""sGPO (arXiv 2606.08854): as many rollouts as it takes, on average, until one succeeds, n = 1 / p.

The paper takes p from an offline profile; here it is the latest estimate. A budget that is to be met exactly turns
the numbers into shares. Degenerate cases, our readings: p = 0 counts as one success in the most rollouts that a
prompt may get; prompts never seen count as p = 1/2.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.allocator import Offer
from knapsack_rl.beliefs import Forecast
from knapsack_rl.rivals.shares import counts_from_shares, fixed_offer


def sgpo_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Rollouts in proportion to 1 / p."""
    return fixed_offer(counts_from_shares(1 / np.maximum(forecast.success_rates_P, 1 / high), budget, low, high))
