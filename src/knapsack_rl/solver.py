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
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from knapsack_rl.dynamic import solve_by_dynamic_programme
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.solution import Solution, checked_budget, checked_costs, checked_limits

# A table [P, N], or a function (rows, stop) -> [len(rows), stop] of which only what is needed is asked: for 100,000
# prompts the full table of 128 columns would be 100 MB, while most prompts are settled within the first 20.
Marginals: TypeAlias = FloatArray | Callable[[IntArray, int], FloatArray]

# Rounding may lift a marginal above the one before it by this share of the row's largest.
ROUNDING = 1e-12


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
    table = _Table(_as_function(marginals, high_P), low_P, high_P)
    try:
        if cost_P is not None:
            return _spend_costs(table, float(budget), checked_costs(cost_P, budget, low_P))
        units = checked_budget(budget, low_P, high_P)
        # A function is asked for a little more than the mean count, an array is there to be checked as a whole.
        first = 16 + 2 * units // max(low_P.size, 1) if callable(marginals) else table.width
        return _spend_units(table, units, max(first, int(low_P.max(initial=0)) + 1))
    except _NotConcaveError:
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


class _NotConcaveError(Exception):
    """A row is not concave between its limits: greedy would not be exact."""


@dataclass(eq=False)
class _Rungs:
    """Some rows of the table, as far as evaluated: true marginals, and the price at which each unit is for sale."""

    rows: IntArray
    marginals: FloatArray
    prices: FloatArray  # -inf outside the limits; the two units of a pair share its worth


@dataclass(eq=False)
class _Table:
    """The table of marginals between the limits."""

    marginals: Callable[[IntArray, int], FloatArray]
    low_P: IntArray
    high_P: IntArray

    @property
    def width(self) -> int:
        return int(self.high_P.max(initial=0))

    def rungs(self, rows: IntArray, stop: int) -> _Rungs:
        """Evaluate some rows up to ``stop`` rollouts and check that they are concave there."""
        stop = min(stop, self.width)
        marginals = np.asarray(self.marginals(rows, stop), dtype=np.float64)
        if not np.isfinite(marginals).all():
            raise ValueError("the values contain NaN or infinity")
        prices = marginals.copy()
        pairs = np.flatnonzero((self.low_P[rows] == 0) & (self.high_P[rows] > 0))
        if pairs.size:
            prices[pairs, :2] = (marginals[pairs, :2].sum(axis=1) / 2)[:, None]
        columns = np.arange(stop)
        inside = (columns >= self.low_P[rows, None]) & (columns < self.high_P[rows, None])
        _check_concave(prices, inside)
        if pairs.size:  # a third unit that rounding lifted above its pair would be bought without it
            prices[pairs] = np.minimum.accumulate(prices[pairs], axis=1)
        prices[~inside] = -np.inf
        return _Rungs(rows, marginals, prices)


def _as_function(marginals: Marginals, high_P: IntArray) -> Callable[[IntArray, int], FloatArray]:
    if callable(marginals):
        return marginals
    table = np.asarray(marginals, dtype=np.float64)
    most = int(high_P.max(initial=0))
    if table.ndim != 2 or table.shape[0] != high_P.size or table.shape[1] < most:
        raise ValueError(f"a table of shape {table.shape} does not hold {high_P.size} prompts up to {most} rollouts")
    return lambda rows, stop: table[rows, :stop]


def _check_concave(prices: FloatArray, inside: BoolArray) -> None:
    rises = np.diff(prices, axis=1)
    slack = ROUNDING * np.abs(prices).max(axis=1, initial=0.0)
    if ((rises > slack[:, None]) & inside[:, 1:] & inside[:, :-1]).any():
        raise _NotConcaveError


def _spend_units(table: _Table, budget: int, first: int) -> Solution:
    """Unit costs: everything above one price is bought, and ties fill the rest in prompt order."""
    units = budget - int(table.low_P.sum())
    price, pieces = _settle(table, units, first)
    counts_P, ties_P = table.low_P.copy(), np.zeros_like(table.low_P)
    for piece in pieces:
        counts_P[piece.rows] += (piece.prices > price).sum(axis=1)
        ties_P[piece.rows] = (piece.prices == price).sum(axis=1)
    left = budget - int(counts_P.sum())
    counts_P += np.clip(left - (np.cumsum(ties_P) - ties_P), 0, ties_P)
    if (counts_P == 1).any():
        _repair(counts_P, table, pieces)
    return Solution(counts_P, _total_value(counts_P, pieces), float(price) if units else 0.0)


def _settle(table: _Table, units: int, stop: int) -> tuple[float, list[_Rungs]]:
    """The price of the ``units``-th dearest unit for sale, with all rows evaluated down to it.

    Seeing more of the table can only raise that price, so a row whose last evaluated unit is cheaper needs no more.
    """
    settled: list[_Rungs] = []
    front = table.rungs(np.arange(table.low_P.size), stop)
    while True:
        prices = np.concatenate([piece.prices.ravel() for piece in [*settled, front]])
        price = np.inf if units == 0 else -np.inf
        if 0 < units <= prices.size:
            price = np.partition(prices, prices.size - units)[prices.size - units]
        stop = front.prices.shape[1]
        unsettled = table.high_P[front.rows] > stop
        if stop:
            unsettled &= front.prices[:, -1] >= price
        settled.append(_Rungs(front.rows[~unsettled], front.marginals[~unsettled], front.prices[~unsettled]))
        if not unsettled.any():
            return float(price), settled
        front = table.rungs(front.rows[unsettled], 4 * stop)


def _total_value(counts_P: IntArray, pieces: list[_Rungs]) -> float:
    return float(
        sum(
            (piece.marginals * (np.arange(piece.marginals.shape[1]) < counts_P[piece.rows, None])).sum()
            for piece in pieces
        )
    )


def _repair(counts_P: IntArray, table: _Table, pieces: list[_Rungs]) -> None:
    """Undo, in place and at the least loss, the one pair that the budget cut in half (module docstring)."""
    cut = int(np.argmax(counts_P == 1))
    low_P, high_P = table.low_P, table.high_P
    counts_P[cut] = 0
    following, last = _units_at(counts_P, pieces), _units_at(counts_P - 1, pieces)
    pair, third = _units_at(np.zeros_like(counts_P), pieces) * 2, _units_at(np.full_like(counts_P, 2), pieces)
    give = np.where((counts_P >= 2) & (counts_P < high_P), following, -np.inf)
    take = np.where((counts_P > 2) & (counts_P > low_P), last, np.inf)
    close = np.where((counts_P == 2) & (low_P == 0), pair, np.inf)
    open_three = np.where((counts_P == 0) & (high_P >= 3), pair + third, -np.inf)
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
        counts_P[[cut, np.argmin(take)]] += [2, -1]
    else:
        counts_P[[np.argmax(open_three), np.argmin(close)]] += [3, -2]


def _units_at(columns_P: IntArray, pieces: list[_Rungs]) -> FloatArray:
    """The price of the unit in a column of each row; -inf where that was not evaluated, so not worth having."""
    units = np.full(columns_P.size, -np.inf)
    for piece in pieces:
        columns, stop = columns_P[piece.rows], piece.prices.shape[1]
        if stop:
            known = piece.prices[np.arange(columns.size), np.clip(columns, 0, stop - 1)]
            units[piece.rows] = np.where((columns >= 0) & (columns < stop), known, -np.inf)
    return units


def _spend_costs(table: _Table, budget: float, cost_P: FloatArray) -> Solution:
    """Unequal costs: buy by worth per cost until a unit no longer fits, then fill what is left."""
    rungs = table.rungs(np.arange(table.low_P.size), table.width)
    worth = (rungs.prices / cost_P[:, None]).ravel()
    order = np.argsort(-worth, kind="stable")
    order = order[worth[order] > 0]
    rows = order // max(table.width, 1)
    left = budget - float((cost_P * table.low_P).sum())
    spent = np.concatenate([[0.0], np.cumsum(cost_P[rows])])
    bought = int(np.searchsorted(spent, left * (1 + ROUNDING), side="right")) - 1
    bound = _total_value(table.low_P, [rungs]) + float(rungs.prices.ravel()[order[:bought]].sum())
    if bought < order.size:  # no plan is worth more than one that could buy part of a unit
        bound += max(left - float(spent[bought]), 0.0) * float(worth[order[bought]])
    counts_P = table.low_P + np.bincount(rows[:bought], minlength=cost_P.size)
    counts_P[counts_P == 1] = 0
    _fill(counts_P, table, rungs, cost_P, budget)
    value = _total_value(counts_P, [rungs])
    gap = max(bound - value, 0.0)
    return Solution(
        counts_P,
        value,
        price=float(worth[order[bought - 1]]) if bought else 0.0,
        gap=gap if gap > ROUNDING * abs(bound) else 0.0,
    )


def _fill(counts_P: IntArray, table: _Table, rungs: _Rungs, cost_P: FloatArray, budget: float) -> None:
    """Spend, in place, what is left on the dearest pair or rollout that still fits, until none does."""
    while True:
        left = budget * (1 + ROUNDING) - float((cost_P * counts_P).sum())
        step_P = np.where(counts_P == 0, 2, 1)
        worth_P = _units_at(counts_P, [rungs]) / cost_P
        worth_P[(counts_P >= table.high_P) | (step_P * cost_P > left)] = -np.inf
        best = int(np.argmax(worth_P))
        if worth_P[best] <= 0:
            return
        counts_P[best] += step_P[best]
