"""VIP (arXiv 2602.01601): divide the budget so that the total variance of the gradient estimate is least.

For a prompt with a_i = 4 p_i (1 - p_i) (times a constant), n rollouts leave a variance of

    RLOO:      a_i / (n - 1),          at the optimum  n_i = 1 + sqrt(a_i / lambda)
    Dr. GRPO:  a_i (n - 1) / n^2,      at the optimum  a_i (n_i - 2) / n_i^3 = lambda

The paper finds lambda by bisection and rounds greedily. Both variances are convex in n from 3 on, hence its least
count of 3, and so the exact knapsack over their decrease finds the best whole numbers directly.

Left out: its Gaussian process over prompt embeddings, which predicts p. Our Beta beliefs replace it, with the mean of
p (1 - p) under them. Degenerate cases: where 3 rollouts of every prompt exceed the budget, the least count is 2 (and
for Dr. GRPO the division is then exact by the slower dynamic programme); prompts without variance share the
remainder.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem

LEAST = 3
FLAT = 1e-9  # the least variance: prompts at 0 and 1 tie at falling prices, and so share evenly


def vip_rloo_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Variance of RLOO: the (n+1)-th rollout reduces it by a / (n (n - 1))."""
    n = np.arange(high)
    return _problem(forecast, budget, low, high, 1 / np.maximum(n * (n - 1.0), 1))


def vip_dr_grpo_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Variance of Dr. GRPO: the (n+1)-th rollout reduces it by a ((n - 1) / n^2 - n / (n + 1)^2)."""
    n = np.maximum(np.arange(high), 1.0)
    return _problem(forecast, budget, low, high, (n - 1) / n**2 - n / (n + 1) ** 2)


def expected_variance(forecast: Forecast) -> FloatArray:
    """E[p (1 - p)] under the Beta beliefs, a b / ((a + b) (a + b + 1)); ``[P]``."""
    rates_P, pseudo_count_P = forecast.success_rates_P, forecast.pseudo_count_P
    variance_P: FloatArray = np.maximum(rates_P * (1 - rates_P) * pseudo_count_P / (pseudo_count_P + 1), FLAT)
    return variance_P


def _problem(forecast: Forecast, budget: int, low: int, high: int, decrease_N: FloatArray) -> AllocationProblem:
    a_P = 4 * expected_variance(forecast)
    least = min(max(low, LEAST), high) if budget >= LEAST * a_P.size else low

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        table = np.zeros((len(rows), stop))
        table[:, : min(stop, high)] = a_P[rows, None] * decrease_N[:stop]
        return table

    return AllocationProblem(marginals, *same_limits(a_P.size, least, high))
