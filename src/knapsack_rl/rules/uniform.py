"""Allocate as stock GRPO does: the same count for every prompt."""

from __future__ import annotations

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import equal_counts
from knapsack_rl.rules.problem import AllocationProblem


def uniform_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Give every prompt the same count, regardless of the forecast (stock GRPO, arXiv 2402.03300).

    If the budget is not divisible, the first prompts get one rollout more. ``low`` and ``high`` are ignored.
    """
    counts_P = equal_counts(forecast.seen_P.size, budget)
    return AllocationProblem(np.zeros((counts_P.size, int(counts_P.max()))), counts_P, counts_P)
