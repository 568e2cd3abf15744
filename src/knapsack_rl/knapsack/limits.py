"""Build and check the limits, budgets and costs of a knapsack problem; the type of its solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

# Largest budget, and largest limit of a prompt: sums of them stay in 64 bits.
MOST = 2**53


@dataclass(frozen=True, eq=False)
class Solution:
    """The counts that a solver chose.

    Attributes:
        counts_P: rollouts per prompt, ``[P]``.
        value: total value of the counts.
        price: value of the last rollout selected, per unit of cost (the paper's lambda); 0.0 if the limits left no
            choice.
        gap: upper bound on how much higher the optimum is; 0.0 means that the counts are optimal.
    """

    counts_P: IntArray
    value: float
    price: float
    gap: float = 0.0


class NoCountsError(ValueError):
    """No counts of 0 or at least the smallest group sum to the budget within the limits."""

    def __init__(self, budget: int, min_group: int) -> None:
        remedy = "raise an upper limit or change the budget"
        if budget < min_group:
            remedy = f"a step needs {min_group} rollouts at least, or a smaller min_group"
        super().__init__(
            f"no counts of 0 or at least {min_group} within the limits sum to a budget of {budget}: {remedy}"
        )


def same_limits(prompts: int, low: int, high: int) -> tuple[IntArray, IntArray]:
    """Return the same limits for every prompt, ``low_P, high_P``, each ``[prompts]``.

    Raises:
        ValueError: a limit above `MOST`.
    """
    if max(low, high) > MOST:
        raise ValueError(f"a limit of {max(low, high)} rollouts of a prompt is above {MOST}: lower it")
    return np.full(prompts, low, dtype=np.int64), np.full(prompts, high, dtype=np.int64)


def equal_counts(prompts: int, budget: int) -> IntArray:
    """Divide the budget equally, ``[prompts]``; the first prompts get one rollout more if it is not divisible.

    Raises:
        ValueError: no prompts, or a budget for which a group would have one rollout.
    """
    if prompts == 0:
        raise ValueError("there are no prompts to plan for: pass at least one")
    counts = spread_evenly(np.zeros(prompts, dtype=np.int64), np.ones(prompts, dtype=bool), budget)
    if (counts == 1).any():
        raise ValueError(f"{budget} rollouts for {prompts} prompts leave groups of one: give at least {2 * prompts}")
    return counts


def spread_evenly(counts_P: IntArray, receivers_P: BoolArray, amount: int, high: int | None = None) -> IntArray:
    """Add ``amount`` rollouts to the counts, distributed as evenly as the limit allows; new counts ``[P]``.

    A remainder goes to the first receivers below the limit, one rollout each. Rollouts beyond the limits of all
    receivers are dropped.

    Args:
        counts_P: counts before, ``[P]``.
        receivers_P: mask of the prompts that may get more, ``[P]``.
        amount: rollouts to distribute.
        high: most rollouts of a prompt; None for no limit.
    """
    counts_P, left = counts_P.copy(), amount
    room_P = np.where(receivers_P, amount if high is None else high - counts_P, 0)
    while left > 0 and (open_ := np.flatnonzero(room_P > 0)[:left]).size:
        share = max(left // int(np.count_nonzero(room_P > 0)), 1)
        more = np.minimum(share, room_P[open_])
        counts_P[open_] += more
        room_P[open_] -= more
        left -= int(more.sum())
    return counts_P


def checked_limits(low_P: IntArray, high_P: IntArray, min_group: int = 2) -> tuple[IntArray, IntArray]:
    """Convert the limits to integers and check them: each must be 0 or at least ``min_group``, and low <= high.

    Raises:
        ValueError: limits that violate this; the message names the first such prompt.
    """
    if isinstance(min_group, bool) or min_group != int(min_group) or not 2 <= min_group <= MOST:
        raise ValueError(f"min_group is {min_group!r}: the smallest group has a whole number of at least 2 rollouts")
    low_P, high_P = np.asarray(low_P, dtype=np.int64), np.asarray(high_P, dtype=np.int64)
    if low_P.shape != high_P.shape or low_P.ndim != 1:
        raise ValueError(f"the limits have shapes {low_P.shape} and {high_P.shape}: one of each per prompt is needed")
    for name, limit_P in (("a lower", low_P), ("an upper", high_P)):
        wrong = (limit_P < 0) | ((limit_P > 0) & (limit_P < min_group))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"prompt {i} has {name} limit of {limit_P[i]}: the smallest group has {min_group} rollouts, use 0 or at"
                f" least {min_group}"
            )
    wrong = low_P > high_P
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"prompt {i} has limits {low_P[i]}..{high_P[i]}: the lower one is larger")
    return low_P, high_P


def whole_budget(budget: float) -> int:
    """Convert the budget to an integer number of rollouts.

    Raises:
        ValueError: not a whole number from 0 to `MOST`.
    """
    given: Any = budget
    number = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    if not number or not 0 <= given <= MOST or given != int(given):
        raise ValueError(f"a budget of {given} rollouts is not a whole number from 0 to {MOST}")
    return int(given)


def checked_budget(budget: float, low_P: IntArray, high_P: IntArray) -> int:
    """Convert the budget to an integer number of rollouts, and check it against the limits.

    Raises:
        ValueError: not a whole number, below the sum of the lower limits, or above the sum of the upper ones.
    """
    budget = whole_budget(budget)
    # In floats, which do not wrap around; exact up to `MOST`.
    least, most = int(low_P.sum(dtype=np.float64)), int(high_P.sum(dtype=np.float64))
    if budget < least:
        raise ValueError(
            f"a budget of {budget} rollouts is below the {least} that the lower limits of {low_P.size} prompts ask for:"
            " raise the budget or lower the limits"
        )
    if budget > most:
        raise ValueError(
            f"a budget of {budget} rollouts is above the {most} that the upper limits of {low_P.size} prompts allow:"
            " lower the budget or raise the limits"
        )
    return budget


def checked_costs(cost_P: FloatArray, budget: float, low_P: IntArray) -> FloatArray:
    """Convert the costs of one rollout of each prompt to floats, and check them and the budget, ``[P]``.

    Raises:
        ValueError: a cost that is not positive and finite, or a budget that is not finite or below the cost of the
            lower limits.
    """
    cost_P = np.asarray(cost_P, dtype=np.float64)
    if cost_P.shape != low_P.shape:
        raise ValueError(f"{low_P.size} prompts need as many costs, not an array of shape {cost_P.shape}")
    wrong = ~((cost_P > 0) & np.isfinite(cost_P))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"prompt {i} costs {cost_P[i]} a rollout: costs must be positive and finite")
    least = float((cost_P * low_P).sum())
    if not np.isfinite(budget):
        raise ValueError(f"a budget of {budget} is not finite")
    if budget < least:
        raise ValueError(f"a budget of {budget} does not cover the {least} that the lower limits cost")
    return cost_P
