"""Solve the knapsack problem exactly: choose the counts of greatest total value for a budget.

The only interface between values and solver is a table of marginals: the solver needs no success rates, and a value
function needs no budget.

Counts are 0 or at least m, the smallest group: 2 by default, because a group of one has no gradient. On these counts a
row is concave if its first m rollouts together have at least m times the value of the next one, and later marginals do
not increase. Such rows are solved greedily: units are selected in order of price, where the first m rollouts count as m
units of equal price. This is exact except in one case: the budget ends within a first group, so that fewer than m units
are left over. Then `repair` finds the exchange of least loss, which is exact (proof in docs/idea.md). All other tables
are solved by a dynamic programme.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from knapsack_rl.knapsack.dynamic_program import solve_by_dynamic_programme
from knapsack_rl.knapsack.limits import Solution, checked_budget, checked_costs, checked_limits
from knapsack_rl.knapsack.price_table import (
    ROUNDING,
    NotConcaveError,
    PriceBlock,
    PriceTable,
    kth_largest,
    prices_at,
    total_value,
)
from knapsack_rl.knapsack.repair import repair_group, repair_pair
from knapsack_rl.notation import FloatArray, IntArray

# A table [P, N], or a function (rows, stop) -> [len(rows), stop], which is evaluated only as far as needed: for 100,000
# prompts the full table of 128 columns would take 100 MB, while the first 20 columns suffice for most prompts.
Marginals: TypeAlias = FloatArray | Callable[[IntArray, int], FloatArray]


def solve(
    marginals: Marginals,
    budget: float,
    low_P: IntArray,
    high_P: IntArray,
    cost_P: FloatArray | None = None,
    min_group: int = 2,
) -> Solution:
    """Choose the counts of greatest total value within the limits.

    Args:
        marginals: value of the (n+1)-th rollout in column n, ``[P, >= high_P.max()]``; or a function
            ``(rows, stop) -> [len(rows), stop]`` that returns the same numbers. A function is evaluated, and checked
            for concavity, only as far as needed.
        budget: without ``cost_P`` the exact number of rollouts to plan; with it the most that may be spent.
        low_P, high_P: limits, ``[P]``, each 0 or at least ``min_group``.
        cost_P: cost of one rollout of each prompt, positive, ``[P]`` (for example expected tokens).
        min_group: rollouts of the smallest group: a prompt gets none, or at least so many.

    Returns:
        The solution; exact (``gap == 0``) without costs. With costs it is at most ``gap`` below the optimum, and the
        gap is at most the value of the first group or rollout that did not fit. Ties are broken by prompt order.

    Raises:
        ValueError: limits or a budget that cannot be met, or values that are not finite.
    """
    low_P, high_P = checked_limits(low_P, high_P, min_group)
    table = PriceTable(_as_function(marginals, high_P), low_P, high_P, min_group)
    try:
        if cost_P is not None:
            return _solve_costs(table, float(budget), checked_costs(cost_P, budget, low_P))
        units = checked_budget(budget, low_P, high_P)
        # Functions are evaluated to about twice the mean count first; arrays are evaluated and checked as a whole.
        first = 8 + 2 * units // max(low_P.size, 1) if callable(marginals) else table.width
        return _solve_units(table, units, first)
    except NotConcaveError:
        whole = table.marginals(np.arange(low_P.size), table.width)
        values = np.concatenate([np.zeros((low_P.size, 1)), np.cumsum(whole, axis=1)], axis=1)
        return solve_by_dynamic_programme(values, budget, low_P, high_P, cost_P, min_group)


def solve_table(
    values_P_N: FloatArray,
    budget: float,
    low_P: IntArray,
    high_P: IntArray,
    cost_P: FloatArray | None = None,
    min_group: int = 2,
) -> Solution:
    """Call `solve` with a table of values: value of n rollouts in column n, ``[P, >= high_P.max() + 1]``."""
    values = np.asarray(values_P_N, dtype=np.float64)
    solution = solve(np.diff(values, axis=1), budget, low_P, high_P, cost_P, min_group)
    return Solution(solution.counts_P, solution.value + float(values[:, 0].sum()), solution.price, solution.gap)


def _as_function(marginals: Marginals, high_P: IntArray) -> Callable[[IntArray, int], FloatArray]:
    """The marginals as a function of rows and stop; a table is checked to be wide enough."""
    if callable(marginals):
        return marginals
    table = np.asarray(marginals, dtype=np.float64)
    most = int(high_P.max(initial=0))
    if table.ndim != 2 or table.shape[0] != high_P.size or table.shape[1] < most:
        raise ValueError(f"a table of shape {table.shape} does not hold {high_P.size} prompts up to {most} rollouts")
    return lambda rows, stop: table[rows, :stop]


def _solve_units(table: PriceTable, budget: int, first: int) -> Solution:
    """Solve with unit costs: select all units above the price, then units at the price in prompt order."""
    counts_P, ties_P = np.zeros_like(table.low_P), np.zeros_like(table.low_P)
    if budget == 0:
        return Solution(counts_P, 0.0, 0.0)
    price, blocks = _find_price(table, budget, first)
    for block in blocks:
        counts_P[block.rows] = np.count_nonzero(block.prices_N_P > price, axis=0)
        ties_P[block.rows] = np.count_nonzero(block.prices_N_P == price, axis=0)
    left = budget - int(counts_P.sum())
    counts_P += np.clip(left - (np.cumsum(ties_P) - ties_P), 0, ties_P)
    cut_P = (counts_P > 0) & (counts_P < table.min_group)
    if not cut_P.any():
        return Solution(counts_P, total_value(counts_P, blocks), price if price < np.inf else 0.0)
    if table.min_group == 2:
        repair_pair(counts_P, blocks)
    else:
        repair_group(counts_P, int(np.argmax(cut_P)), table, price)
        # An exchange may reach columns below the price.
        blocks = table.blocks(np.arange(counts_P.size), int(counts_P.max()))
    return Solution(counts_P, total_value(counts_P, blocks), price)


def _find_price(table: PriceTable, budget: int, stop: int) -> tuple[float, list[PriceBlock]]:
    """Find the ``budget``-th largest price, and evaluate every row at least down to that price.

    Evaluating more columns can only raise the price, so a row whose last evaluated price is below it is complete.
    """
    complete: list[PriceBlock] = []
    rows = np.arange(table.low_P.size)
    while True:
        blocks = table.blocks(rows, stop)
        price = kth_largest([*complete, *blocks], budget)
        incomplete: list[IntArray] = []
        for block in blocks:
            more_P = (table.high_P[block.rows] > stop) & (block.prices_N_P[-1] >= price)
            incomplete.append(block.rows[more_P])
            complete.append(block.select(~more_P) if incomplete[-1].size else block)
        rows = np.concatenate(incomplete)
        if not rows.size:
            return price, complete
        stop *= 2


def _solve_costs(table: PriceTable, budget: float, cost_P: FloatArray) -> Solution:
    """Solve with unequal costs: select units by price per cost until one does not fit, then fill the remainder."""
    blocks = table.blocks(np.arange(table.low_P.size), table.width)
    ratio = np.concatenate([np.empty(0), *((block.prices_N_P / cost_P[block.rows]).T.ravel() for block in blocks)])
    order = np.argsort(-ratio, kind="stable")
    order = order[(ratio[order] > 0) & (ratio[order] < np.inf)]
    rows = order // max(table.width, 1)
    left = budget - float((cost_P * table.low_P).sum())
    spent = np.concatenate([[0.0], np.cumsum(cost_P[rows])])
    bought = int(np.searchsorted(spent, left * (1 + ROUNDING), side="right")) - 1
    bound = total_value(table.low_P, blocks) + float((ratio[order[:bought]] * cost_P[rows[:bought]]).sum())
    if bought < order.size:  # the optimum with fractional units, an upper bound
        bound += max(left - float(spent[bought]), 0.0) * float(ratio[order[bought]])
    counts_P = table.low_P + np.bincount(rows[:bought], minlength=cost_P.size)
    counts_P[counts_P < table.min_group] = 0
    _fill(counts_P, table, blocks, cost_P, budget)
    value = total_value(counts_P, blocks)
    gap = max(bound - value, 0.0)
    return Solution(
        counts_P,
        value,
        price=float(ratio[order[bought - 1]]) if bought else 0.0,
        gap=gap if gap > ROUNDING * abs(bound) else 0.0,
    )


def _fill(counts_P: IntArray, table: PriceTable, blocks: list[PriceBlock], cost_P: FloatArray, budget: float) -> None:
    """Add, in place, the first group or rollout of highest price per cost that fits the budget, until none does."""
    while True:
        left = budget * (1 + ROUNDING) - float((cost_P * counts_P).sum())
        step_P = np.where(counts_P == 0, table.min_group, 1)
        ratio_P = prices_at(counts_P, blocks) / cost_P
        ratio_P[(counts_P >= table.high_P) | (step_P * cost_P > left)] = -np.inf
        best = int(np.argmax(ratio_P)) if ratio_P.size else 0
        if not ratio_P.size or ratio_P[best] <= 0:
            return
        counts_P[best] += step_P[best]
