"""The least concave value above a given one: what an exact knapsack by price may sell where a value is not concave."""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

# Rounding may lift a marginal above the one before it by this share of the row's largest.
ROUNDING = 1e-10


def concave_envelope(values_P_N: FloatArray, low: int) -> FloatArray:
    """Marginals of the least concave value above the given one, on the counts that may be planned.

    Args:
        values_P_N: worth of n rollouts in column n, ``[P, N + 1]``; column 0 is 0 and column 1 is ignored.
        low: least count: 0, and then the counts are 0, 2, 3, ..., or at least 2, and then it begins there.

    Returns:
        Marginals ``[P, N]``, never rising from ``low`` on. Where the value was concave they are its own (a pair as two
        halves); elsewhere it is replaced by chords, and a plan by price ends inside a chord for one prompt at most.
    """
    marginals = np.diff(values_P_N, axis=1)
    if low == 0 and marginals.shape[1] > 1:
        marginals[:, :2] = values_P_N[:, 2:3] / 2
    rows = np.arange(marginals.shape[0])
    first = np.full(rows.size, low)
    while rows.size:
        open_ = _rises_after(first, marginals[rows])
        rows, first = rows[open_], first[open_]
        if rows.size:
            marginals[rows], first = _with_steepest_chord(marginals[rows], first)
    np.minimum.accumulate(marginals[:, low:], axis=1, out=marginals[:, low:])
    return marginals


def _rises_after(first_P: IntArray, marginals_P_N: FloatArray) -> BoolArray:
    """Whether a later marginal exceeds the one before it, from a column on, ``[P]``."""
    most_P = np.abs(marginals_P_N).max(axis=1, initial=0.0)
    rises = np.diff(marginals_P_N, axis=1) > ROUNDING * most_P[:, None]
    found: BoolArray = (rises & (np.arange(rises.shape[1]) >= first_P[:, None])).any(axis=1)
    return found


def _with_steepest_chord(marginals_P_N: FloatArray, first_P: IntArray) -> tuple[FloatArray, IntArray]:
    """Average the marginals from a vertex of the envelope to the next; returns them and that vertex."""
    columns = np.arange(marginals_P_N.shape[1])
    ahead = columns >= first_P[:, None]
    sums = np.cumsum(np.where(ahead, marginals_P_N, 0.0), axis=1)
    slopes = np.where(ahead, sums / np.maximum(columns + 1 - first_P[:, None], 1), -np.inf)
    last_P = slopes.argmax(axis=1)
    steepest_P = slopes[np.arange(last_P.size), last_P]
    chord = ahead & (columns <= last_P[:, None])
    return np.where(chord, steepest_P[:, None], marginals_P_N), last_P + 1
