"""The general knapsack: a dynamic programme for tables of any shape, exact for whole costs."""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.solution import Solution, checked_budget, checked_costs, checked_limits

# One byte-pair of memory and some hundred operations a cell: beyond this, minutes and gigabytes.
MOST_CELLS = 500_000_000


def solve_by_dynamic_programme(
    values_P_N: FloatArray,
    budget: float,
    low_P: IntArray,
    high_P: IntArray,
    cost_P: FloatArray | None = None,
) -> Solution:
    """Choose the counts of greatest total value, whatever the shape of the values.

    Row after row, best[b] is the greatest value of the rows so far at cost exactly b; each row tries all its counts for
    all b at once. Time is ``P * budget * high``, memory ``P * budget``: for tables that are not concave only.

    Args:
        values_P_N: worth of n rollouts in column n, ``[P, >= high_P.max() + 1]``.
        budget: without ``cost_P`` the exact number of rollouts; with it the most that may be spent.
        low_P, high_P: limits, ``[P]``, each 0 or at least 2; a count of 1 is never planned.
        cost_P: whole positive costs of one rollout, ``[P]``.

    Raises:
        ValueError: limits or a budget that cannot be met, costs that are not whole, a table too large.
    """
    low_P, high_P = checked_limits(low_P, high_P)
    values = np.asarray(values_P_N, dtype=np.float64)
    costs = _whole_costs(cost_P, budget, low_P)
    room = checked_budget(budget, low_P, high_P) if cost_P is None else int(budget)
    if low_P.size * (room + 1) > MOST_CELLS:
        raise ValueError(
            f"values that are not concave need a table of {low_P.size} prompts x {room} units, over the limit of"
            f" {MOST_CELLS} cells: use a concave value, or a smaller budget"
        )
    best = np.full(room + 1, -np.inf)
    best[0] = 0.0
    choices = np.zeros((low_P.size, room + 1), dtype=np.int32)
    for i in range(low_P.size):
        best, choices[i] = _one_row(best, values[i], int(costs[i]), int(low_P[i]), int(high_P[i]))
    spent = room if cost_P is None else int(np.argmax(best))
    if best[spent] == -np.inf:
        raise ValueError(f"no counts of 0 or at least 2 within the limits sum to a budget of {budget}")
    counts = _read_back(choices, costs, spent)
    return Solution(counts, float(best[spent]), _price(values, counts, costs, low_P))


def _one_row(
    best: FloatArray, values_N: FloatArray, cost: int, low: int, high: int
) -> tuple[FloatArray, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    after = np.full_like(best, -np.inf)
    choice = np.zeros(best.size, dtype=np.int32)
    for n in range(low, high + 1):
        if n == 1:
            continue
        if n * cost >= best.size:
            break
        candidate = best[: best.size - n * cost] + values_N[n]
        better = candidate > after[n * cost :]
        after[n * cost :][better] = candidate[better]
        choice[n * cost :][better] = n
    return after, choice


def _read_back(choices: np.ndarray[tuple[int, int], np.dtype[np.int32]], costs: IntArray, spent: int) -> IntArray:
    counts = np.zeros(len(choices), dtype=np.int64)
    for i in range(len(choices) - 1, -1, -1):
        counts[i] = choices[i, spent]
        spent -= int(counts[i] * costs[i])
    return counts


def _price(values: FloatArray, counts: IntArray, costs: IntArray, low_P: IntArray) -> float:
    """Least worth per unit of cost of a last rollout bought above the lower limit."""
    bought = np.flatnonzero(counts > low_P)
    if not bought.size:
        return 0.0
    step = np.where(counts[bought] == 2, 2, 1)  # the rollout before a pair is no rollout
    worth = values[bought, counts[bought]] - values[bought, counts[bought] - step]
    return float((worth / (step * costs[bought])).min())


def _whole_costs(cost_P: FloatArray | None, budget: float, low_P: IntArray) -> IntArray:
    if cost_P is None:
        return np.ones(low_P.size, dtype=np.int64)
    costs = checked_costs(cost_P, budget, low_P)
    if (costs != np.floor(costs)).any():
        raise ValueError("values that are not concave need whole costs: round them to whole units first")
    return costs.astype(np.int64)
