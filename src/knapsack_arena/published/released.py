"""Knapsack RL as released: the authors' code (liziniu/KnapsackRL @ca5d5f5), its defects included.

`sampling_budget_by_knapsack` in ``exploration_utils.py``; docs/beliefs.md numbers the defects. Reproduced here:

- (1) Prompts never seen count as never solved where the surplus is divided.
- (3) The first extra rollout is credited with the whole Value(low + 1), not with what it adds to Value(low); so
  hardly any mixed prompt keeps the least count.
- (4) Rollouts that the mixed prompts have no room for are spread evenly, beyond the largest count allowed.
- The surplus for prompts never solved has no upper limit either.

Where their code crashes, this falls back to equal counts: (2) every prompt mixed and their need below the budget; (6)
the least counts exceed the budget. Their dynamic programme is not run: with the wrong credit the values stay concave,
so the exact knapsack over the same values gives the same total in a thousandth of the time (a test compares both).
"""

from __future__ import annotations

import numpy as np

from knapsack_arena.published.shares import equal_problem, fixed_problem
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits, spread_evenly
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem
from knapsack_rl.rules.paper import rollouts_for_confidence
from knapsack_rl.values import knapsack_marginals


def released_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """The counts that the released code plans."""
    rates_P = np.where(forecast.seen_P, forecast.success_rates_P, 0.0)
    mixed_P = forecast.seen_P & (rates_P > 0) & (rates_P < 1)
    counts_P = np.where(forecast.seen_P, low, budget // rates_P.size).astype(np.int64)
    left = budget - int(counts_P.sum())
    if low < 2 or left < 0:
        return equal_problem(rates_P.size, budget)
    if not mixed_P.any():
        if not (rates_P == 0).any():
            return equal_problem(rates_P.size, budget)
        return fixed_problem(spread_evenly(counts_P, rates_P == 0, left))
    need = int(np.minimum(rollouts_for_confidence(rates_P[mixed_P]), high).astype(np.int64).sum())
    if need < left:
        receivers = (rates_P == 0) if (rates_P == 0).any() else ~mixed_P
        if not receivers.any():
            return equal_problem(rates_P.size, budget)
        counts_P = spread_evenly(counts_P, receivers, left - need)
        left = need
    counts_P[mixed_P] = _knapsack(rates_P[mixed_P], left, low, high)
    return fixed_problem(counts_P)


def credited_marginals(success_rates_P: FloatArray, low: int, stop: int) -> FloatArray:
    """Values of rollouts in their programme, where the first beyond ``low`` counts Value(low + 1); ``[P, stop]``."""
    table = knapsack_marginals(success_rates_P, max(stop, low + 1)).copy()
    table[:, low] = table[:, : low + 1].sum(axis=1)
    return table[:, :stop]


def _knapsack(rates_P: FloatArray, extra: int, low: int, high: int) -> IntArray:
    """Counts of the mixed prompts, with ``extra`` rollouts beyond the least counts; the excess goes beyond ``high``."""
    room = rates_P.size * (high - low)
    spent = min(extra, room) + low * rates_P.size
    counts_P = solve(
        lambda rows, stop: credited_marginals(rates_P[rows], low, stop), spent, *same_limits(rates_P.size, low, high)
    ).counts_P
    beyond = extra - min(extra, room)
    return spread_evenly(counts_P, np.ones(rates_P.size, dtype=bool), beyond)
