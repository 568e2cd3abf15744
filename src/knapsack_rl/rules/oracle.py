"""Allocate by the paper's value at known success rates."""

from __future__ import annotations

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.rules.problem import AllocationProblem
from knapsack_rl.values import knapsack_marginals


def oracle_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Maximise the sum of Value(n, p) at the forecast's success rates, taken as exact.

    There are no special cases: at rates of exactly 0 and 1 all values are 0, so that such prompts get the lower limit,
    unless the budget exceeds what the other prompts can take.
    """
    rates_P = forecast.success_rates_P
    limits = same_limits(rates_P.size, low, high)
    return AllocationProblem(lambda rows, stop: knapsack_marginals(rates_P[rows], stop), *limits)
