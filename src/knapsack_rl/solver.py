"""How to spend a budget: the exact knapsack over any values that are concave from two rollouts on.

The solver never sees a probability and a value never sees a budget: they meet as a table of marginals.

Counts come from {0, 2, 3, ...}: a group of one has no gradient, so a 1 is never planned. On that lattice a row whose
pair is worth at least twice its third rollout, and whose later rollouts fall in worth, lies on its concave hull. Such
rows are bought greedily by price, and a pair counts as two units at half its worth each. That is exact, but for one
case: a single unit can be left over when the next thing for sale is a pair. Then the best of three repairs is exact
(docs/idea.md has the proof): give the unit to an open group, take one from another group to complete the pair, or close
one pair and open a group of three. Any other table goes to a dynamic programme.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from knapsack_rl.dynamic import solve_by_dynamic_programme
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.prices import ROUNDING, NotConcaveError, PriceTable, Rungs, nth_dearest, prices_at, total_value
from knapsack_rl.solution import Solution, checked_budget, checked_costs, checked_limits

# A table [P, N], or a function (rows, stop) -> [len(rows), stop] of which only what is needed is asked: for 100,000
# prompts the full table of 128 columns would be 100 MB, while most prompts are settled within the first 20.
Marginals: TypeAlias = FloatArray | Callable[[IntArray, int], FloatArray]


def solve(
    marginals: Marginals,
    budget: float,
    low_P: IntArray,
    high_P: IntArray,
    cost_P: FloatArray | None = None,
) -> Solution:
    """Choose the counts of greatest total value within the limits.

    Args:
        marginals: column n is the worth of going from n to n+1 rollouts, ``[P, >= high_P.max()]``; or a function
            ``(rows, stop) -> [len(rows), stop]`` of the same numbers, evaluated only as far as needed (and so checked
            for concavity only there).
        budget: without ``cost_P`` the exact number of rollouts to plan; with it the most that may be spent.
        low_P, high_P: limits, ``[P]``, each 0 or at least 2.
        cost_P: cost of one rollout of each prompt, positive, ``[P]`` (for example expected tokens).

    Returns:
        The solution; exact (``gap == 0``) without costs. With costs it is at most ``gap`` below the optimum, which is
        never more than the worth of the one pair or rollout that no longer fitted. Ties are broken by prompt order.

    Raises:
        ValueError: limits or a budget that cannot be met, or values that are not finite.
    """
    low_P, high_P = checked_limits(low_P, high_P)
    table = PriceTable(_as_function(marginals, high_P), low_P, high_P)
    try:
        if cost_P is not None:
            return _spend_costs(table, float(budget), checked_costs(cost_P, budget, low_P))
        units = checked_budget(budget, low_P, high_P)
        # A function is asked for a little more than the mean count, an array is there to be checked as a whole.
        first = 8 + 2 * units // max(low_P.size, 1) if callable(marginals) else table.width
        return _spend_units(table, units, first)
    except NotConcaveError:
        whole = table.marginals(np.arange(low_P.size), table.width)
        values = np.concatenate([np.zeros((low_P.size, 1)), np.cumsum(whole, axis=1)], axis=1)
        return solve_by_dynamic_programme(values, budget, low_P, high_P, cost_P)


def solve_table(
    values_P_N: FloatArray,
    budget: float,
    low_P: IntArray,
    high_P: IntArray,
    cost_P: FloatArray | None = None,
) -> Solution:
    """`solve` for a table of values: column n is the worth of n rollouts, ``[P, >= high_P.max() + 1]``."""
    values = np.asarray(values_P_N, dtype=np.float64)
    solution = solve(np.diff(values, axis=1), budget, low_P, high_P, cost_P)
    return Solution(solution.counts_P, solution.value + float(values[:, 0].sum()), solution.price, solution.gap)


def _as_function(marginals: Marginals, high_P: IntArray) -> Callable[[IntArray, int], FloatArray]:
    if callable(marginals):
        return marginals
    table = np.asarray(marginals, dtype=np.float64)
    most = int(high_P.max(initial=0))
    if table.ndim != 2 or table.shape[0] != high_P.size or table.shape[1] < most:
        raise ValueError(f"a table of shape {table.shape} does not hold {high_P.size} prompts up to {most} rollouts")
    return lambda rows, stop: table[rows, :stop]


def _spend_units(table: PriceTable, budget: int, first: int) -> Solution:
    """Unit costs: everything above one price is bought, and ties fill the rest in prompt order."""
    counts_P, ties_P = np.zeros_like(table.low_P), np.zeros_like(table.low_P)
    if budget == 0:
        return Solution(counts_P, 0.0, 0.0)
    price, pieces = _settle(table, budget, first)
    for piece in pieces:
        counts_P[piece.rows] = np.count_nonzero(piece.prices_N_P > price, axis=0)
        ties_P[piece.rows] = np.count_nonzero(piece.prices_N_P == price, axis=0)
    left = budget - int(counts_P.sum())
    counts_P += np.clip(left - (np.cumsum(ties_P) - ties_P), 0, ties_P)
    if (counts_P == 1).any():
        _repair(counts_P, pieces)
    return Solution(counts_P, total_value(counts_P, pieces), price if price < np.inf else 0.0)


def _settle(table: PriceTable, budget: int, stop: int) -> tuple[float, list[Rungs]]:
    """The price of the ``budget``-th dearest unit, with all rows evaluated down to it.

    Seeing more of the table can only raise that price, so a row whose last evaluated unit is cheaper needs no more.
    """
    settled: list[Rungs] = []
    rows = np.arange(table.low_P.size)
    while True:
        front = table.pieces(rows, stop)
        price = nth_dearest([*settled, *front], budget)
        unsettled: list[IntArray] = []
        for piece in front:
            more_P = (table.high_P[piece.rows] > stop) & (piece.prices_N_P[-1] >= price)
            unsettled.append(piece.rows[more_P])
            settled.append(piece.keep(~more_P) if unsettled[-1].size else piece)
        rows = np.concatenate(unsettled)
        if not rows.size:
            return price, settled
        stop *= 2


def _repair(counts_P: IntArray, pieces: list[Rungs]) -> None:
    """Undo, in place and at the least loss, the one pair that the budget cut in half (module docstring).

    The limits hold by price: a rollout below the lower one would cost +inf to take, one above the other brings -inf.
    """
    cut = int(np.argmax(counts_P == 1))
    counts_P[cut] = 0
    following, last = prices_at(counts_P, pieces), prices_at(counts_P - 1, pieces)
    pair, third = 2 * prices_at(np.zeros_like(counts_P), pieces), prices_at(np.full_like(counts_P, 2), pieces)
    give = np.where(counts_P >= 2, following, -np.inf)
    take = np.where(counts_P > 2, last, np.inf)
    close = np.where(counts_P == 2, pair, np.inf)
    open_three = np.full_like(pair, -np.inf)
    np.add(pair, third, out=open_three, where=counts_P == 0)
    gains = (give.max(), pair[cut] - take.min(), open_three.max() - close.min())
    best = int(np.argmax(gains))
    if gains[best] == -np.inf:
        raise ValueError(
            f"no counts of 0 or at least 2 within the limits sum to a budget of {int(counts_P.sum()) + 1}:"
            " raise an upper limit or change the budget by one"
        )
    if best == 0:
        counts_P[np.argmax(give)] += 1
    elif best == 1:
        counts_P[[cut, int(np.argmin(take))]] += [2, -1]
    else:
        counts_P[[int(np.argmax(open_three)), int(np.argmin(close))]] += [3, -2]


def _spend_costs(table: PriceTable, budget: float, cost_P: FloatArray) -> Solution:
    """Unequal costs: buy by worth per cost until a unit no longer fits, then fill what is left."""
    pieces = table.pieces(np.arange(table.low_P.size), table.width)
    worth = np.concatenate([np.empty(0), *((piece.prices_N_P / cost_P[piece.rows]).T.ravel() for piece in pieces)])
    order = np.argsort(-worth, kind="stable")
    order = order[(worth[order] > 0) & (worth[order] < np.inf)]
    rows = order // max(table.width, 1)
    left = budget - float((cost_P * table.low_P).sum())
    spent = np.concatenate([[0.0], np.cumsum(cost_P[rows])])
    bought = int(np.searchsorted(spent, left * (1 + ROUNDING), side="right")) - 1
    bound = total_value(table.low_P, pieces) + float((worth[order[:bought]] * cost_P[rows[:bought]]).sum())
    if bought < order.size:  # no plan is worth more than one that could buy part of a unit
        bound += max(left - float(spent[bought]), 0.0) * float(worth[order[bought]])
    counts_P = table.low_P + np.bincount(rows[:bought], minlength=cost_P.size)
    counts_P[counts_P == 1] = 0
    _fill(counts_P, table, pieces, cost_P, budget)
    value = total_value(counts_P, pieces)
    gap = max(bound - value, 0.0)
    return Solution(
        counts_P,
        value,
        price=float(worth[order[bought - 1]]) if bought else 0.0,
        gap=gap if gap > ROUNDING * abs(bound) else 0.0,
    )


def _fill(counts_P: IntArray, table: PriceTable, pieces: list[Rungs], cost_P: FloatArray, budget: float) -> None:
    """Spend, in place, what is left on the dearest pair or rollout that still fits, until none does."""
    while True:
        left = budget * (1 + ROUNDING) - float((cost_P * counts_P).sum())
        step_P = np.where(counts_P == 0, 2, 1)
        worth_P = prices_at(counts_P, pieces) / cost_P
        worth_P[(counts_P >= table.high_P) | (step_P * cost_P > left)] = -np.inf
        best = int(np.argmax(worth_P)) if worth_P.size else 0
        if not worth_P.size or worth_P[best] <= 0:
            return
        counts_P[best] += step_P[best]
