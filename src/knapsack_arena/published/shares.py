"""Convert shares to counts, for rules that define proportions of rollouts and not whole numbers."""

from __future__ import annotations

import numpy as np

from knapsack_rl.knapsack.limits import checked_budget, checked_limits, equal_counts
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem

_HALVINGS = 80


def counts_from_shares(shares_P: FloatArray, budget: int, low: int, high: int) -> IntArray:
    """Whole counts in proportion to shares within the limits, summing to the budget exactly; ``[P]``.

    n_i = clip(t * share_i, low, high), with t such that they sum to the budget; the rollouts lost by rounding down go
    to the largest remainders, ties by prompt order. Equal shares, or all 0, give equal counts.

    Raises:
        ValueError: a share that is negative or not finite, a least count below 2, or a budget outside the limits.
    """
    _check_least(low)
    shares = np.asarray(shares_P, dtype=np.float64)
    if (shares < 0).any() or not np.isfinite(shares).all():
        raise ValueError(f"shares must be at least 0 and finite: {shares}")
    limits = checked_limits(np.full(shares.size, low), np.full(shares.size, high))
    checked_budget(budget, *limits)
    if not shares.any():
        shares = np.ones_like(shares)
    # The least share is positive, so that the budget can be met beyond the limits of all other prompts.
    shares = np.maximum(shares / shares.max(), 1e-12)
    return _whole(_filled(shares, budget, low, high), budget, high)


def extra_by_shares(shares_P: FloatArray, budget: int, low: int, high: int) -> IntArray:
    """The least count for every prompt, and the rest in proportion to shares, at most ``high`` each; ``[P]``.

    Raises:
        ValueError: as `counts_from_shares`.
    """
    _check_least(low)
    size = shares_P.size
    checked_budget(budget, *checked_limits(np.full(size, low), np.full(size, high)))
    shares = np.maximum(shares_P / max(shares_P.max(), 1e-300), 1e-12)
    extra = budget - low * size
    counts: IntArray = low + _whole(_filled(shares, extra, 0, high - low), extra, high - low)
    return counts


def fixed_problem(counts_P: IntArray) -> AllocationProblem:
    """A problem whose limits fix the counts."""
    return AllocationProblem(np.zeros((counts_P.size, max(int(counts_P.max()), 1))), counts_P, counts_P)


def equal_problem(prompts: int, budget: int) -> AllocationProblem:
    """The same count for every prompt."""
    return fixed_problem(equal_counts(prompts, budget))


def _filled(shares_P: FloatArray, budget: int, low: int, high: int) -> FloatArray:
    """clip(t * share, low, high) that sums to the budget, by bisection on t."""
    below, above = 0.0, (high + 1.0) / float(shares_P.min())
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if np.clip(middle * shares_P, low, high).sum() < budget:
            below = middle
        else:
            above = middle
    filled: FloatArray = np.clip(above * shares_P, low, high)
    return filled


def _whole(real_P: FloatArray, budget: int, high: int) -> IntArray:
    """Rounded down, and one more for the largest remainders that have room."""
    counts = np.floor(real_P + 1e-9).astype(np.int64)
    while (left := budget - int(counts.sum())) > 0:
        order = np.argsort(-np.where(counts < high, real_P - counts, -np.inf), kind="stable")
        counts[order[: min(left, int((counts < high).sum()))]] += 1
    return counts


def _check_least(low: int) -> None:
    if low < 2:
        raise ValueError(f"this rule gives every prompt a group: its least count must be at least 2, not {low}")
