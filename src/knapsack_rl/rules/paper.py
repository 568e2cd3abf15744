"""Allocate as the paper's authors do (arXiv 2509.25849): the value at point estimates, special cases as limits.

The authors' code (``sampling_budget_by_knapsack``) distinguishes four kinds of prompts: unseen prompts get an equal
share; prompts solved always or never get the minimum; rollouts that the mixed prompts do not need go to the prompts
never solved. Here each case is a lower and an upper limit, equal where the rule leaves no choice, so that the solver
has no special cases.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import equal_counts, spread_evenly
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.rules.problem import AllocationProblem
from knapsack_rl.values import knapsack_marginals

# Probability of a mixed group up to which the rule gives a mixed prompt rollouts before there is a surplus.
CONFIDENCE = 0.9


def paper_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Maximise the sum of Value(n, p) at the estimated success rates, within the limits of `paper_limits`.

    Knapsack RL (arXiv 2509.25849), Value(n, p) = (1 - p^n - (1-p)^n) p (1-p)^2. Degenerate cases: at p = 0, at p = 1
    and for unseen prompts, `paper_limits` fixes the count.
    """
    limits = paper_limits(forecast.success_rates_P, forecast.seen_P, budget, low, high)
    return AllocationProblem(lambda rows, stop: knapsack_marginals(forecast.success_rates_P[rows], stop), *limits)


def rollouts_for_confidence(success_rates_P: FloatArray, confidence: float = CONFIDENCE) -> FloatArray:
    """Compute the rollouts after which a group is mixed with this probability, ``[P]`` (paper, Theorem 1, part 2).

    N = ln(1 - confidence) / ln(max(p, 1-p)); infinite at p = 0 and p = 1.
    """
    rarer_P: FloatArray = np.minimum(success_rates_P, 1 - success_rates_P)
    with np.errstate(divide="ignore"):  # log1p, because 1 - p rounds to 1 for a rate of 1e-20
        rollouts_P: FloatArray = np.log(1 - confidence) / np.log1p(-rarer_P)
    return rollouts_P


def paper_limits(
    success_rates_P: FloatArray, seen_P: BoolArray, budget: int, low: int, high: int
) -> tuple[IntArray, IntArray]:
    """Compute the limits that express the authors' special cases, with defects repaired (listed in docs/beliefs.md).

    Args:
        success_rates_P: estimated success rates, ``[P]``; ignored where not seen.
        seen_P: whether there is an estimate, ``[P]``.
        budget: rollouts of the step.
        low, high: least and most rollouts of a prompt.

    Returns:
        ``low_P, high_P``, each ``[P]``: equal for prompts that are not mixed, ``low`` and ``high`` for mixed ones.

    Raises:
        ValueError: ``low`` below 2 (the rule leaves no prompt out), or a budget for which a group would have one
            rollout.
    """
    if low < 2:
        raise ValueError(f"the paper's rule gives every prompt a group: its least count must be at least 2, not {low}")
    mixed = seen_P & (success_rates_P > 0) & (success_rates_P < 1)
    unsolved = seen_P & (success_rates_P == 0)
    counts = np.where(seen_P, low, np.clip(equal_counts(seen_P.size, budget), low, high))
    extra = budget - int(counts.sum())
    need = np.minimum(rollouts_for_confidence(success_rates_P[mixed]), high).astype(np.int64).sum()
    surplus = max(extra - int(need), 0)
    receivers = unsolved if unsolved.any() else ~mixed
    counts = spread_evenly(counts, receivers, surplus, high)
    # Rollouts above the limits of the unsolved prompts go to the mixed ones, and above their limits to the others.
    room = int(mixed.sum()) * (high - low)
    counts = spread_evenly(counts, ~mixed, budget - int(counts.sum()) - room, high)
    return counts, np.where(mixed, high, counts)
