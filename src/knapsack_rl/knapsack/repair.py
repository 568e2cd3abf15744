"""Repair a plan whose last group the budget cuts: fewer rollouts are left than the smallest group has.

The counts without that group are optimal for the budget without the rest. Compare them with an optimal solution for the
whole budget: rollouts added to open groups, and rollouts taken from groups that stay open, can be undone one for one
without loss; a group that is started and one that is left out likewise, if the one left out was as large. So an optimal
solution exists that differs from the counts in one of three ways: the rest goes to open groups; a group is started and
open groups give what it lacks; or groups of fewer than 2 m rollouts (m: the smallest group) are left out, and at most
m - 1 larger ones are started (docs/idea.md).
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.knapsack.limits import NoCountsError
from knapsack_rl.knapsack.price_table import PriceBlock, PriceTable, prices_at
from knapsack_rl.notation import FloatArray, IntArray


def repair_pair(counts_P: IntArray, blocks: list[PriceBlock]) -> None:
    """Replace, in place and at the least loss, the single rollout of a pair that the budget cuts.

    The three ways are then single exchanges: add the rollout to a group; complete the pair with a rollout of another
    group; or leave a pair out and start a group of three. Prices enforce the limits: removing a rollout below a lower
    limit costs +inf, adding one above an upper limit gains -inf.

    Raises:
        NoCountsError: no counts within the limits sum to the budget.
    """
    cut = int(np.argmax(counts_P == 1))
    counts_P[cut] = 0
    following, last = prices_at(counts_P, blocks), prices_at(counts_P - 1, blocks)
    pair, third = 2 * prices_at(np.zeros_like(counts_P), blocks), prices_at(np.full_like(counts_P, 2), blocks)
    add_one = np.where(counts_P >= 2, following, -np.inf)
    remove_one = np.where(counts_P > 2, last, np.inf)
    remove_pair = np.where(counts_P == 2, pair, np.inf)
    add_three = np.full_like(pair, -np.inf)
    np.add(pair, third, out=add_three, where=counts_P == 0)
    gains = (add_one.max(), pair[cut] - remove_one.min(), add_three.max() - remove_pair.min())
    best = int(np.argmax(gains))
    if gains[best] == -np.inf:
        raise NoCountsError(int(counts_P.sum()) + 1, 2)
    if best == 0:
        counts_P[np.argmax(add_one)] += 1
    elif best == 1:
        counts_P[[cut, int(np.argmin(remove_one))]] += [2, -1]
    else:
        counts_P[[int(np.argmax(add_three)), int(np.argmin(remove_pair))]] += [3, -2]


def repair_group(counts_P: IntArray, cut: int, table: PriceTable, price: float) -> None:
    """Replace, in place and at the least loss, the rollouts of a group that the budget cuts, of any smallest size.

    Args:
        counts_P: counts, of which one is below the smallest group; ``[P]``.
        cut: the row of that one.
        table: marginals and limits.
        price: value of the last rollout selected, against which a loss is measured.

    Raises:
        NoCountsError: no counts within the limits sum to the budget.
    """
    smallest, rest = table.min_group, int(counts_P[cut])
    counts_P[cut] = 0
    changes_D = np.arange(1 - 2 * smallest, 2 * smallest)
    loss_P_D = _losses(counts_P, table, price, changes_D)
    # At most 4 m rows differ, so that each change needs the 4 m rows of least loss.
    order = np.argsort(loss_P_D, axis=0, kind="stable")[: 4 * smallest]
    rows = np.unique(order[np.isfinite(np.take_along_axis(loss_P_D, order, axis=0))])
    furthest = smallest * smallest
    best = np.full(2 * furthest + 1, np.inf)
    best[furthest] = 0.0
    choices = np.zeros((rows.size, best.size), dtype=np.int64)
    for i, row in enumerate(rows.tolist()):
        best, choices[i] = _add_changes(best, changes_D, loss_P_D[row])
    at = furthest + rest
    if not best[at] < np.inf:
        raise NoCountsError(int(counts_P.sum()) + rest, smallest)
    for i in range(rows.size - 1, -1, -1):
        change = int(choices[i, at])
        counts_P[rows[i]] += change
        at -= change


def _losses(counts_P: IntArray, table: PriceTable, price: float, changes_D: IntArray) -> FloatArray:
    """What each change of each count loses, measured at the price; inf where a limit forbids it; ``[P, D]``."""
    stop = min(int(counts_P.max()) + int(changes_D.max()), table.width)
    marginals = np.asarray(table.marginals(np.arange(counts_P.size), stop), dtype=np.float64)
    values_P_N = np.zeros((counts_P.size, stop + 1))
    np.cumsum(marginals, axis=1, out=values_P_N[:, 1:])
    new_P_D = counts_P[:, None] + changes_D
    group_P_D = (new_P_D == 0) | (new_P_D >= table.min_group)
    allowed_P_D = group_P_D & (new_P_D >= table.low_P[:, None]) & (new_P_D <= table.high_P[:, None])
    gained = np.take_along_axis(values_P_N, np.clip(new_P_D, 0, stop), axis=1)
    gained -= np.take_along_axis(values_P_N, counts_P[:, None], axis=1)
    return np.where(allowed_P_D, price * changes_D - gained, np.inf)


def _add_changes(best: FloatArray, changes_D: IntArray, loss_D: FloatArray) -> tuple[FloatArray, IntArray]:
    """The least losses with one more row, and that row's change for each sum of changes; both ``[sums]``."""
    after, choice = best.copy(), np.zeros(best.size, dtype=np.int64)
    for change, loss in zip(changes_D.tolist(), loss_D.tolist(), strict=True):
        if change == 0 or loss == np.inf:
            continue
        to = slice(max(change, 0), best.size + min(change, 0))
        candidate = best[max(-change, 0) : best.size - max(change, 0)] + loss
        better = candidate < after[to]
        after[to][better] = candidate[better]
        choice[to][better] = change
    return after, choice
