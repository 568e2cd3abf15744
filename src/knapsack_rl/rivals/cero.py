"""CERO (arXiv 2606.05606): what a rollout is worth falls with all the rollouts that the prompt has had, in every epoch.

    utility of a prompt = w_i * U(N_i),   w_i = E[p (1 - p)] = a b / ((a + b) (a + b + 1))

under a Beta posterior with forgetting, where N_i counts the prompt's rollouts so far and in this step, and U is
concave. The best division gives every rollout the same price, w_i U'(N_i) = lambda. The paper learns lambda online,
over epochs, because its budget is one for the whole run; where each step has a budget of its own, the price follows
from it, and the knapsack finds the division exactly.

Our readings: U(N) = log(1 + N), which saturates as its examples do; N_i fades as the belief does, so it is the
belief's own weight of evidence. Degenerate cases: prompts never seen have N_i = 0 and the variance of the prior.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.allocator import Offer
from knapsack_rl.beliefs import Forecast
from knapsack_rl.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rivals.vip import expected_variance


def cero_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """The worth of the next rollout, w (log(2 + N + n) - log(1 + N + n))."""
    weight_P, had_P = expected_variance(forecast), np.where(forecast.seen_P, forecast.strength_P, 0.0)

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        found: FloatArray = weight_P[rows, None] * np.log1p(1 / (1 + had_P[rows, None] + np.arange(stop)))
        return found

    return Offer(marginals, *same_limits(weight_P.size, low, high))
