"""Convert marginal values to prices, so that a solver can select rollouts greedily; evaluated only as far as needed.

Each row becomes a non-increasing price sequence: +inf for mandatory units (below the lower limit), -inf for unavailable
ones (above the upper limit); the first rollouts of an optional prompt (lower limit 0), as many as the smallest group
has, are one item of value v, split into m units of price v / m (docs/idea.md). If a row is not non-increasing,
`NotConcaveError` is raised, because greedy selection would not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

# Tolerated increase of a marginal over the one before it, as a share of the row's largest.
ROUNDING = 1e-12

# Cells of a block: so many stay in a core's cache, which makes evaluation three times as fast.
_CELLS = 1 << 16
# Every so many-th price is sorted to estimate the k-th largest price.
_SAMPLING_STRIDE = 61


class NotConcaveError(Exception):
    """A row is not concave between its limits, so that greedy selection by price would not be exact."""


@dataclass(eq=False)
class PriceBlock:
    """Some rows of the table, transposed, up to the number of rollouts evaluated so far.

    Attributes:
        rows: row numbers, ``[P]``.
        marginals_N_P: marginal value of each rollout, ``[N, P]``.
        prices_N_P: price of each rollout, non-increasing along axis 0, ``[N, P]``.
    """

    rows: IntArray
    marginals_N_P: FloatArray
    prices_N_P: FloatArray

    def select(self, mask_P: BoolArray) -> PriceBlock:
        """Return the block of these rows only."""
        at = np.flatnonzero(mask_P)
        return PriceBlock(self.rows[at], self.marginals_N_P.take(at, axis=1), self.prices_N_P.take(at, axis=1))


@dataclass(eq=False)
class PriceTable:
    """Marginals and limits of all prompts, from which blocks of prices are computed.

    Attributes:
        marginals: function ``(rows, stop) -> [len(rows), stop]``; column n is the value of the (n+1)-th rollout.
        low_P, high_P: limits of the counts, ``[P]``.
        min_group: rollouts of the smallest group.
    """

    marginals: Callable[[IntArray, int], FloatArray]
    low_P: IntArray
    high_P: IntArray
    min_group: int = 2

    @property
    def width(self) -> int:
        """The largest upper limit."""
        return int(self.high_P.max(initial=0))

    def blocks(self, rows: IntArray, stop: int) -> list[PriceBlock]:
        """Compute the prices of some rows for the first ``stop`` rollouts, in blocks that fit into the cache.

        Raises:
            NotConcaveError: a row whose prices increase.
            ValueError: marginals of another shape, or not finite.
        """
        stop = min(max(stop, self.min_group), self.width)
        size = max(_CELLS // max(stop, 1), 1)
        return [self._block(rows[i : i + size], stop) for i in range(0, rows.size, size)]

    def _block(self, rows: IntArray, stop: int) -> PriceBlock:
        """Evaluate and check the marginals of some rows, and compute their prices."""
        marginals = np.asarray(self.marginals(rows, stop), dtype=np.float64)
        if marginals.shape != (rows.size, stop):
            raise ValueError(f"marginals of {rows.size} prompts up to {stop} rollouts have shape {marginals.shape}")
        if not np.isfinite(marginals).all():
            raise ValueError("the values contain NaN or infinity")
        low_P, high_P = self.low_P[rows], self.high_P[rows]
        units = np.ascontiguousarray(marginals.T)
        prices = units.copy()
        optional, first = (low_P == 0) & (high_P > 0), self.min_group
        if optional.any():
            prices[:first, optional] = units[:first, optional].sum(axis=0) / first
        columns = np.arange(stop)[:, None]
        most, least = int(low_P.max(initial=0)), int(high_P.min(initial=stop))
        prices[:most][columns[:most] < low_P] = np.inf
        prices[least:][columns[least:] >= high_P] = -np.inf
        return PriceBlock(rows, units, _non_increasing(prices))


def _non_increasing(prices_N_P: FloatArray) -> FloatArray:
    """Lower prices that exceed the one before them by rounding only, in place.

    Raises:
        NotConcaveError: a price that exceeds the one before it by more.
    """
    rises = prices_N_P[1:] > prices_N_P[:-1]
    if rises.any():
        most_P = np.abs(prices_N_P).max(axis=0, initial=0.0, where=np.isfinite(prices_N_P))
        if (prices_N_P[1:] > prices_N_P[:-1] + ROUNDING * most_P).any():
            raise NotConcaveError
        for n in range(1, prices_N_P.shape[0]):
            np.minimum(prices_N_P[n - 1], prices_N_P[n], out=prices_N_P[n])
    return prices_N_P


def kth_largest(blocks: list[PriceBlock], k: int) -> float:
    """Find the ``k``-th largest price; -inf if there are fewer.

    A sorted sample gives an interval that contains it with high probability, and only prices in that interval are
    ranked; otherwise all are.
    """
    prices = np.concatenate([block.prices_N_P.ravel() for block in blocks])
    if k > prices.size:
        return -np.inf
    sample = np.sort(prices[::_SAMPLING_STRIDE])[::-1]
    rank, margin = k / prices.size * sample.size, 1 + 2 * np.sqrt(sample.size)
    upper, lower = sample[max(int(rank - margin), 0)], sample[min(int(rank + margin), sample.size - 1)]
    rank_between = k - int(np.count_nonzero(prices > upper))
    between = prices[np.flatnonzero((prices >= lower) & (prices <= upper))]
    if not 0 < rank_between <= between.size:
        rank_between, between = k, prices
    return float(np.partition(between, between.size - rank_between)[between.size - rank_between])


def total_value(counts_P: IntArray, blocks: list[PriceBlock]) -> float:
    """Compute the total value of the counts, none of which may exceed the evaluated number of rollouts."""

    def value(block: PriceBlock) -> float:
        columns = np.arange(block.marginals_N_P.shape[0])[:, None]
        return float((block.marginals_N_P * (columns < counts_P[block.rows])).sum())

    return sum(value(block) for block in blocks)


def prices_at(columns_P: IntArray, blocks: list[PriceBlock]) -> FloatArray:
    """Look up the price in one column of each row, ``[P]``; -inf for columns that were not evaluated or are negative.

    Columns that were not evaluated have prices below the solution's, so that -inf excludes them correctly.
    """
    prices_P = np.full(columns_P.size, -np.inf)
    for block in blocks:
        columns, stop = columns_P[block.rows], block.prices_N_P.shape[0]
        if stop:
            known = block.prices_N_P[np.clip(columns, 0, stop - 1), np.arange(columns.size)]
            prices_P[block.rows] = np.where((columns >= 0) & (columns < stop), known, -np.inf)
    return prices_P
