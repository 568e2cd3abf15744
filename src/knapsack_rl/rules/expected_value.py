"""Allocate by the expectation of the paper's value under Beta beliefs."""

from __future__ import annotations

from typing import Final

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules.problem import AllocationProblem
from knapsack_rl.values import expected_knapsack_marginals, kept_success_marginals, storing_marginals

# Later groups that a kept success may save, and their size (docs/value.md; of a pilot, not tuned).
VISITS: Final = 2.0
LATER_GROUP: Final = 8


def expected_value(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Maximise the sum of E[Value(n, p)] with p ~ Beta(alpha, beta), under the same limits for every prompt.

    There are no special cases: a prompt without observations has the prior, which must be positive (alpha, beta > 0).
    Where successes are kept (``forecast.kept_P``), a prompt that has one is worth E[(1 - p^n) p (1-p)^2], and the
    others what finding one adds.
    """
    alpha_P, beta_P, kept_P = forecast.alpha_P, forecast.beta_P, forecast.kept_P

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        alpha, beta = alpha_P[rows], beta_P[rows]
        fresh = expected_knapsack_marginals(alpha, beta, stop)
        if kept_P is None:
            return fresh
        fresh = fresh + storing_marginals(alpha, beta, stop, VISITS, LATER_GROUP)
        return np.where(kept_P[rows][:, None], kept_success_marginals(alpha, beta, stop), fresh)

    return AllocationProblem(marginals, *same_limits(alpha_P.size, low, high))
