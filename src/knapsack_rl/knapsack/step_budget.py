"""Choose how many rollouts a step deserves: stop where another one is worth less here than in the next step.

A step of B rollouts has the value V(B) of its plan, which is concave in B: the price of its last rollout falls, because
the best prompts of those offered come first. The next step offers others. Let a step cost as much as c rollouts beside
its own: the time of its weight transfer and update, and what the noise of one more update undoes. Over a run, steps of
B rollouts then bring V(B) / (B + c) for each unit of cost, and this is largest where

    price(B) = V(B) / (B + c)

The left side is what another rollout adds in this step, the right side what a unit of cost brings on average, and so in
the next step (the marginal value theorem: Charnov, Theoretical Population Biology 9, 1976; docs/value.md).
"""

from __future__ import annotations

from contextlib import suppress

from knapsack_rl.knapsack.limits import NoCountsError, Solution
from knapsack_rl.knapsack.solver import Marginals, solve
from knapsack_rl.notation import IntArray


def best_budget(
    marginals: Marginals,
    least: int,
    most: int,
    low_P: IntArray,
    high_P: IntArray,
    step_cost: float,
    min_group: int = 2,
) -> int:
    """The budget between two limits of greatest value for each unit of cost.

    Args:
        marginals, low_P, high_P, min_group: as in `solve`.
        least, most: smallest and largest budget, in rollouts.
        step_cost: cost of a step beside its rollouts, in rollouts.

    Returns:
        The budget; of equal ones the smallest. Where limits leave gaps between two groups (counts of 0 or 8 cannot sum
        to 12), it is one that counts sum to.

    Raises:
        NoCountsError: no counts sum to any of these budgets.
        ValueError: limits that cross, a cost that is negative, or a budget that `solve` refuses.
    """
    if least > most:
        raise ValueError(f"the smallest budget, {least}, is above the largest, {most}")
    if not 0 <= step_cost < float("inf"):
        raise ValueError(f"step_cost is {step_cost}: it counts rollouts and must be 0 or more, and finite")

    def first_from(budget: int) -> tuple[int, Solution | None]:
        """The smallest budget from here on that counts sum to, and its solution; None if there is none."""
        for each in range(budget, most + 1):
            with suppress(NoCountsError):
                return each, solve(marginals, each, low_P, high_P, min_group=min_group)
        return most, None

    if least < most:
        least, found = first_from(least)
        if found is None:
            raise NoCountsError(most, min_group)
    while least < most:
        middle = (least + most) // 2
        following, solution = first_from(middle + 1)
        # The price of the next rollout against what a unit of cost has brought by then.
        if solution is not None and solution.price * (following + step_cost) > solution.value:
            least = following
        else:
            most = middle
    return least
