"""Knapsack RL as released: the authors' code (liziniu/KnapsackRL @ca5d5f5), its defects included.

`sampling_budget_by_knapsack` in ``exploration_utils.py``; docs/beliefs.md numbers the defects. Reproduced here:

- (1) Prompts never seen count as never solved where the surplus is divided.
- (3) The first extra rollout is credited with the whole Value(low + 1), not with what it adds to Value(low); so
  hardly any mixed prompt keeps the least count.
- (4) What the mixed prompts have no room for is spread evenly, past the most that a prompt may get.
- Surplus for prompts never solved knows no most either.

Where their code crashes, this falls back to equal counts: (2) every prompt mixed and their need below the budget; (6)
the least counts exceed the budget. Their dynamic programme is not run: with the wrong credit the values stay concave,
so the exact knapsack over the same values gives the same total in a thousandth of the time (a test compares the two).
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.allocator import Offer
from knapsack_rl.beliefs import Forecast
from knapsack_rl.limits import equal_counts, rollouts_for_confidence, same_limits
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.rivals.shares import equal_offer, fixed_offer
from knapsack_rl.solver import solve
from knapsack_rl.values import knapsack_marginals


def released_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """The counts that the released code would have planned."""
    rates_P = np.where(forecast.seen_P, forecast.success_rates_P, 0.0)
    mixed_P = forecast.seen_P & (rates_P > 0) & (rates_P < 1)
    counts_P = np.where(forecast.seen_P, low, budget // rates_P.size).astype(np.int64)
    left = budget - int(counts_P.sum())
    if low < 2 or left < 0:
        return equal_offer(rates_P.size, budget)
    if not mixed_P.any():
        if not (rates_P == 0).any():
            return equal_offer(rates_P.size, budget)
        return fixed_offer(_evenly(counts_P, rates_P == 0, left))
    need = int(np.minimum(rollouts_for_confidence(rates_P[mixed_P]), high).astype(np.int64).sum())
    if need < left:
        receivers = (rates_P == 0) if (rates_P == 0).any() else ~mixed_P
        if not receivers.any():
            return equal_offer(rates_P.size, budget)
        counts_P = _evenly(counts_P, receivers, left - need)
        left = need
    counts_P[mixed_P] = _knapsack(rates_P[mixed_P], left, low, high)
    return fixed_offer(counts_P)


def credited_marginals(success_rates_P: FloatArray, low: int, stop: int) -> FloatArray:
    """What their programme thinks a rollout beyond ``low`` adds: all of Value(low + 1) the first; ``[P, stop]``."""
    table = knapsack_marginals(success_rates_P, max(stop, low + 1)).copy()
    table[:, low] = table[:, : low + 1].sum(axis=1)
    return table[:, :stop]


def _knapsack(rates_P: FloatArray, extra: int, low: int, high: int) -> IntArray:
    """Counts of the mixed prompts, ``extra`` rollouts beyond the least; what has no room goes past the most."""
    room = rates_P.size * (high - low)
    spent = min(extra, room) + low * rates_P.size
    counts_P = solve(
        lambda rows, stop: credited_marginals(rates_P[rows], low, stop), spent, *same_limits(rates_P.size, low, high)
    ).counts_P
    beyond = extra - min(extra, room)
    return counts_P + (equal_counts(rates_P.size, beyond + 2 * rates_P.size) - 2) if beyond else counts_P


def _evenly(counts_P: IntArray, receivers_P: BoolArray, amount: int) -> IntArray:
    """The counts with an amount divided evenly among the receivers, the remainder to the first of them."""
    places = np.flatnonzero(receivers_P)
    counts_P = counts_P.copy()
    counts_P[places] += amount // places.size
    counts_P[places[: amount % places.size]] += 1
    return counts_P
