"""The paper's solver, for comparison: a dynamic programme that computes each value in its innermost loop.

Written for this benchmark after the paper: prompts x budget x extra rollouts, compiled by Numba. As in the
authors' code, success rates are in single precision, exponents are whole, and unreachable budgets are skipped. One
defect is repaired: the least count is credited with its value.
"""

from __future__ import annotations

import numba
import numpy as np

from knapsack_rl.notation import FloatArray, IntArray


@numba.njit
def _tables(rates_P, spare, low, high):  # type: ignore[no-untyped-def]
    best_P_B = np.full((rates_P.size + 1, spare + 1), -np.inf)
    best_P_B[0, 0] = 0.0
    extra_P_B = np.zeros((rates_P.size, spare + 1), dtype=np.int32)
    for i in range(rates_P.size):
        p = rates_P[i]
        for b in range(spare + 1):
            for k in range(min(high - low, b) + 1):
                if best_P_B[i, b - k] == -np.inf:
                    continue
                value = (1 - p ** (low + k) - (1 - p) ** (low + k)) * p * (1 - p) ** 2
                if best_P_B[i, b - k] + value > best_P_B[i + 1, b]:
                    best_P_B[i + 1, b] = best_P_B[i, b - k] + value
                    extra_P_B[i, b] = k
    return extra_P_B


def solve_by_the_authors_method(success_rates_P: FloatArray, budget: int, low: int, high: int) -> IntArray:
    """Counts of greatest total Value(n, p) that sum to the budget; ``[P]``."""
    spare = budget - low * success_rates_P.size
    extra_P_B = _tables(success_rates_P.astype(np.float32), spare, low, high)
    counts_P = np.full(success_rates_P.size, low, dtype=np.int64)
    for i in reversed(range(success_rates_P.size)):
        counts_P[i] += extra_P_B[i, spare]
        spare -= extra_P_B[i, spare]
    return counts_P
