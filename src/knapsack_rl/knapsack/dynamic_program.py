"""Solve the general knapsack by a dynamic programme: values of any shape, integer costs, exact."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np

from knapsack_rl.knapsack.limits import NoCountsError, Solution, checked_budget, checked_costs, checked_limits
from knapsack_rl.notation import FloatArray, IntArray

# Each cell takes 4 bytes and some hundred operations; a larger table would take minutes and gigabytes.
MAX_CELLS = 500_000_000


def solve_by_dynamic_programme(
    values_P_N: FloatArray,
    budget: float,
    low_P: IntArray,
    high_P: IntArray,
    cost_P: FloatArray | None = None,
    min_group: int = 2,
) -> Solution:
    """Choose the counts of greatest total value, for values of any shape.

    ``best[b]`` is the greatest value of the rows processed so far at a cost of exactly b; every row tries all its
    counts for all b at once. Time is ``P * budget * high``, memory ``P * budget``; concave tables have a faster solver.

    Args:
        values_P_N: value of n rollouts in column n, ``[P, >= high_P.max() + 1]``.
        budget: without ``cost_P`` the exact number of rollouts; with it the most that may be spent.
        low_P, high_P: limits, ``[P]``, each 0 or at least ``min_group``.
        cost_P: integer positive costs of one rollout, ``[P]``.
        min_group: rollouts of the smallest group; a smaller count is never planned, other than 0.

    Returns:
        The optimum (``gap == 0``).

    Raises:
        ValueError: limits or a budget that cannot be met, costs that are not integers, or a table with more than
            `MAX_CELLS` cells.
    """
    low_P, high_P = checked_limits(low_P, high_P, min_group)
    values = np.asarray(values_P_N, dtype=np.float64)
    costs = _integer_costs(cost_P, budget, low_P)
    units = checked_budget(budget, low_P, high_P) if cost_P is None else int(budget)
    if low_P.size * (units + 1) > MAX_CELLS:
        raise ValueError(
            f"values that are not concave need a table of {low_P.size} prompts x {units} units, over the limit of"
            f" {MAX_CELLS} cells: use a concave value, or a smaller budget"
        )
    best = np.full(units + 1, -np.inf)
    best[0] = 0.0
    choices = np.zeros((low_P.size, units + 1), dtype=np.int32)
    for i in range(low_P.size):
        counts = range(max(int(low_P[i]), min_group), int(high_P[i]) + 1)
        best, choices[i] = _add_row(best, values[i], int(costs[i]), chain([0] if low_P[i] == 0 else [], counts))
    spent = units if cost_P is None else int(np.argmax(best))
    if best[spent] == -np.inf:
        raise NoCountsError(int(budget), min_group)
    chosen_P = _backtrack(choices, costs, spent)
    return Solution(chosen_P, float(best[spent]), _price(values, chosen_P, costs, low_P, min_group))


def _add_row(
    best: FloatArray, values_N: FloatArray, cost: int, counts: Iterable[int]
) -> tuple[FloatArray, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """The greatest values with one more row, and the count of that row at each total cost; both ``[units + 1]``."""
    after = np.full_like(best, -np.inf)
    choice = np.zeros(best.size, dtype=np.int32)
    for n in counts:
        if n * cost >= best.size:
            break
        candidate = best[: best.size - n * cost] + values_N[n]
        better = candidate > after[n * cost :]
        after[n * cost :][better] = candidate[better]
        choice[n * cost :][better] = n
    return after, choice


def _backtrack(choices: np.ndarray[tuple[int, int], np.dtype[np.int32]], costs: IntArray, spent: int) -> IntArray:
    """The counts that led to a total cost of ``spent``, ``[P]``."""
    counts = np.zeros(len(choices), dtype=np.int64)
    for i in range(len(choices) - 1, -1, -1):
        counts[i] = choices[i, spent]
        spent -= int(counts[i] * costs[i])
    return counts


def _price(values: FloatArray, counts: IntArray, costs: IntArray, low_P: IntArray, min_group: int) -> float:
    """The least value per unit of cost of the last rollouts above the lower limits; 0.0 if there are none."""
    bought = np.flatnonzero(counts > low_P)
    if not bought.size:
        return 0.0
    step = np.where(counts[bought] == min_group, min_group, 1)  # the smallest group was reached from 0
    gain = values[bought, counts[bought]] - values[bought, counts[bought] - step]
    return float((gain / (step * costs[bought])).min())


def _integer_costs(cost_P: FloatArray | None, budget: float, low_P: IntArray) -> IntArray:
    """The costs as integers, ``[P]``; 1 by default."""
    if cost_P is None:
        return np.ones(low_P.size, dtype=np.int64)
    costs = checked_costs(cost_P, budget, low_P)
    if (costs != np.floor(costs)).any():
        raise ValueError("values that are not concave need integer costs: round them to integer units first")
    # Integers keep a cost below 2^53 exact; a larger one is beyond any budget that the table could hold.
    return np.minimum(costs, 2.0**53).astype(np.int64)
