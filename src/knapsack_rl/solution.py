"""What a solver returns, and what it refuses before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Solution:
    """The counts a solver chose.

    Attributes:
        counts_P: rollouts per prompt, ``[P]``.
        value: their total value.
        price: value of the last rollout bought, per unit of cost (the paper's lambda); 0.0 if none was for sale.
        gap: the optimum is at most this much higher; 0.0 is exact.
    """

    counts_P: IntArray
    value: float
    price: float
    gap: float = 0.0


def checked_limits(low_P: IntArray, high_P: IntArray) -> tuple[IntArray, IntArray]:
    """The limits as integers; each must be 0 or at least 2, and low <= high.

    Raises:
        ValueError: limits that break this, naming the first such prompt.
    """
    low_P, high_P = np.asarray(low_P, dtype=np.int64), np.asarray(high_P, dtype=np.int64)
    if low_P.shape != high_P.shape or low_P.ndim != 1:
        raise ValueError(f"the limits have shapes {low_P.shape} and {high_P.shape}: one of each per prompt is needed")
    for name, limit_P in (("a lower", low_P), ("an upper", high_P)):
        wrong = (limit_P < 0) | (limit_P == 1)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"prompt {i} has {name} limit of {limit_P[i]}: a group of one has no gradient, use 0 or at least 2"
            )
    wrong = low_P > high_P
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"prompt {i} has limits {low_P[i]}..{high_P[i]}: the lower one is larger")
    return low_P, high_P


def checked_budget(budget: float, low_P: IntArray, high_P: IntArray) -> int:
    """The budget in rollouts, if the limits can meet it exactly.

    Raises:
        ValueError: not a whole number, below the sum of the lower limits, or above the sum of the upper ones.
    """
    if not np.isfinite(budget) or budget != int(budget):
        raise ValueError(f"a budget of {budget} rollouts is not a whole number")
    least, most = int(low_P.sum()), int(high_P.sum())
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
    return int(budget)


def checked_costs(cost_P: FloatArray, budget: float, low_P: IntArray) -> FloatArray:
    """The costs of one rollout of each prompt, if the budget covers the lower limits.

    Raises:
        ValueError: a cost that is not positive and finite, or a budget that is not, or that the lower limits exceed.
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
