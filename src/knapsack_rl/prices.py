"""A table of values as prices: what each rollout is sold at, evaluated only as far as a solver asks.

A row becomes prices that never rise: a rollout below the lower limit is bought already (+inf), one beyond the upper
limit is not for sale (-inf), and the first two of a row that may be left out are a pair, two units at half its worth
each (docs/idea.md). A row that cannot be made so is refused: buying by price would not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

# Rounding may lift a marginal above the one before it by this share of the row's largest.
ROUNDING = 1e-12

# Numbers of the table that are evaluated at a time: they stay in a core's cache, which is three times as fast.
_CELLS = 1 << 16
# Of a large table every so many units are sorted, to know roughly what the last one bought will cost.
_SAMPLED = 61


class NotConcaveError(Exception):
    """A row is not concave between its limits: buying by price would not be exact."""


@dataclass(eq=False)
class Rungs:
    """Some rows of the table, turned, as far as evaluated: true marginals, and the price at which each unit is sold."""

    rows: IntArray
    marginals_N_P: FloatArray
    prices_N_P: FloatArray

    def keep(self, kept_P: BoolArray) -> Rungs:
        """These rows only."""
        at = np.flatnonzero(kept_P)
        return Rungs(self.rows[at], self.marginals_N_P.take(at, axis=1), self.prices_N_P.take(at, axis=1))


@dataclass(eq=False)
class PriceTable:
    """The table of marginals between the limits."""

    marginals: Callable[[IntArray, int], FloatArray]
    low_P: IntArray
    high_P: IntArray

    @property
    def width(self) -> int:
        """The largest upper limit."""
        return int(self.high_P.max(initial=0))

    def pieces(self, rows: IntArray, stop: int) -> list[Rungs]:
        """Evaluate some rows up to ``stop`` rollouts, a few at a time."""
        stop = min(stop, self.width)
        at_a_time = max(_CELLS // max(stop, 1), 1)
        return [self.rungs(rows[i : i + at_a_time], stop) for i in range(0, rows.size, at_a_time)]

    def rungs(self, rows: IntArray, stop: int) -> Rungs:
        """Evaluate some rows and check that they are concave there."""
        marginals = np.asarray(self.marginals(rows, stop), dtype=np.float64)
        if marginals.shape != (rows.size, stop):
            raise ValueError(f"marginals of {rows.size} prompts up to {stop} rollouts have shape {marginals.shape}")
        if not np.isfinite(marginals).all():
            raise ValueError("the values contain NaN or infinity")
        low_P, high_P = self.low_P[rows], self.high_P[rows]
        units = np.ascontiguousarray(marginals.T)
        prices = units.copy()
        pairs = (low_P == 0) & (high_P > 0)
        if pairs.any():
            prices[:2, pairs] = units[:2, pairs].sum(axis=0) / 2
        columns = np.arange(stop)[:, None]
        most, least = int(low_P.max(initial=0)), int(high_P.min(initial=stop))
        prices[:most][columns[:most] < low_P] = np.inf
        prices[least:][columns[least:] >= high_P] = -np.inf
        return Rungs(rows, units, _falling(prices))


def _falling(prices_N_P: FloatArray) -> FloatArray:
    """Prices that never rise along a row, in place: what rounding lifted is put back, anything more is refused."""
    rises = prices_N_P[1:] > prices_N_P[:-1]
    if rises.any():
        most_P = np.abs(prices_N_P).max(axis=0, initial=0.0, where=np.isfinite(prices_N_P))
        if (prices_N_P[1:] > prices_N_P[:-1] + ROUNDING * most_P).any():
            raise NotConcaveError
        for n in range(1, prices_N_P.shape[0]):
            np.minimum(prices_N_P[n - 1], prices_N_P[n], out=prices_N_P[n])
    return prices_N_P


def nth_dearest(pieces: list[Rungs], n: int) -> float:
    """The ``n``-th largest price, -inf if there are fewer.

    A sorted sample tells between which two prices it lies; only what lies between them is then ranked.
    """
    prices = np.concatenate([piece.prices_N_P.ravel() for piece in pieces])
    if n > prices.size:
        return -np.inf
    sample = np.sort(prices[::_SAMPLED])[::-1]
    rank, margin = n / prices.size * sample.size, 1 + 2 * np.sqrt(sample.size)
    upper, lower = sample[max(int(rank - margin), 0)], sample[min(int(rank + margin), sample.size - 1)]
    rank_between = n - int(np.count_nonzero(prices > upper))
    between = prices[np.flatnonzero((prices >= lower) & (prices <= upper))]
    if not 0 < rank_between <= between.size:
        rank_between, between = n, prices
    return float(np.partition(between, between.size - rank_between)[between.size - rank_between])


def total_value(counts_P: IntArray, pieces: list[Rungs]) -> float:
    """What these counts are worth, all of them within what was evaluated."""

    def value(piece: Rungs) -> float:
        columns = np.arange(piece.marginals_N_P.shape[0])[:, None]
        return float((piece.marginals_N_P * (columns < counts_P[piece.rows])).sum())

    return sum(value(piece) for piece in pieces)


def prices_at(columns_P: IntArray, pieces: list[Rungs]) -> FloatArray:
    """The price of the unit in a column of each row; -inf where that was not evaluated, so not worth having."""
    units = np.full(columns_P.size, -np.inf)
    for piece in pieces:
        columns, stop = columns_P[piece.rows], piece.prices_N_P.shape[0]
        if stop:
            known = piece.prices_N_P[np.clip(columns, 0, stop - 1), np.arange(columns.size)]
            units[piece.rows] = np.where((columns >= 0) & (columns < stop), known, -np.inf)
    return units
