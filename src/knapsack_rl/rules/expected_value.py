"""Allocate by the expectation of the paper's value under Beta beliefs."""

from __future__ import annotations

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules.problem import AllocationProblem
from knapsack_rl.values import expected_knapsack_marginals


def expected_value(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Maximise the sum of E[Value(n, p)] with p ~ Beta(alpha, beta), under the same limits for every prompt.

    There are no special cases: a prompt without observations has the prior, which must be positive (alpha, beta > 0).
    """
    alpha_P, beta_P = forecast.alpha_P, forecast.beta_P

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        return expected_knapsack_marginals(alpha_P[rows], beta_P[rows], stop)

    return AllocationProblem(marginals, *same_limits(alpha_P.size, low, high))
