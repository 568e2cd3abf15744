"""CERO (arXiv 2606.05606): the value of a rollout falls with all the rollouts that the prompt has had, in all epochs.

    utility of a prompt = w_i * U(N_i),   w_i = E[p (1 - p)] = a b / ((a + b) (a + b + 1))

under a Beta posterior with decay, where N_i counts the prompt's rollouts so far and in this step, and U is concave.
The optimal division satisfies w_i U'(N_i) = lambda for all prompts. The paper learns lambda online, over epochs,
because its budget is for the whole run; where each step has a budget, lambda follows from it, and the knapsack finds
the division exactly.

Our readings: U(N) = log(1 + N), which saturates as its examples do; N_i decays as the belief does, so it is the
belief's pseudo-count. Degenerate cases: prompts never seen have N_i = 0 and the variance of the prior.
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.published.vip import expected_variance
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem


def cero_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Value the (n+1)-th rollout at w (log(2 + N + n) - log(1 + N + n))."""
    weight_P, had_P = expected_variance(forecast), np.where(forecast.seen_P, forecast.pseudo_count_P, 0.0)

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        found: FloatArray = weight_P[rows, None] * np.log1p(1 / (1 + had_P[rows, None] + np.arange(stop)))
        return found

    return AllocationProblem(marginals, *same_limits(weight_P.size, low, high))
