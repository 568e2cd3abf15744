"""The value of a group under MaxRL's loss, whose advantages are divided by the group's mean reward.

The loss is that of arXiv 2602.02710; code: tajwarfahim/maxrl. It leaves the division of rollouts equal. The value below
is the one that fits it, as the paper's Value fits GRPO's. In a group of n with k > 0 successes a success has the
advantage (1 - k/n) / (k/n), so that the pushes towards them sum to 1 - k/n of the group's weight; without a success
there is none. Its expectation is (1 - q^n) - p, with q = 1 - p, which is 0 at n = 1. A push moves p by p q:

    value(n) = p q ((1 - q^n) - p),        marginal of rollout n + 1:  p^2 q^(n+1),  n >= 1,

and under a Beta(a, b) belief the marginal is E[p^2 q^(n+1)] = M(2, n + 1).
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem


def maxrl_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Maximise the sum of E[p q ((1 - q^n) - p)] with p ~ Beta(alpha, beta), under the same limits for every prompt."""
    alpha_P, beta_P = forecast.alpha_P, forecast.beta_P

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        a, b = alpha_P[rows], beta_P[rows]
        total = a + b
        table = np.zeros((len(rows), stop))
        moment = a / total * (a + 1) / (total + 1) * b / (total + 2) * (b + 1) / (total + 3)
        for n in range(1, stop):
            table[:, n] = moment
            moment = moment * (b + (n + 1)) / (total + (n + 3))
        return table

    return AllocationProblem(marginals, *same_limits(alpha_P.size, low, high))
