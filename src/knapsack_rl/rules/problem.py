"""The interface of allocation rules: a forecast as input, an allocation problem as output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.solver import Marginals
from knapsack_rl.notation import IntArray


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """The marginal values and limits that the solver optimises over.

    Attributes:
        marginals: value of the (n+1)-th rollout in column n, ``[P, N]``, or a function
            ``(rows, stop) -> [len(rows), stop]``.
        low_P, high_P: least and most rollouts of each prompt, ``[P]``.
    """

    marginals: Marginals
    low_P: IntArray
    high_P: IntArray


class AllocationRule(Protocol):
    """A pure function from a forecast to an allocation problem."""

    def __call__(self, forecast: Forecast, budget: int, low: int, high: int, /) -> AllocationProblem:
        """Build the allocation problem of a step.

        Args:
            forecast: success rates and pseudo-counts of the prompts.
            budget: rollouts of the step.
            low, high: least and most rollouts of a prompt.
        """
        ...
