"""A rule that values rollouts by the expected size of the update under the loss in use (docs/value.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from knapsack_arena.update_values.values import (
    Gain,
    Update,
    Weighting,
    expectations,
    parameters,
    powers,
    raised,
    update_powers,
    update_sizes,
    update_squares,
)
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.rules import AllocationProblem, AllocationRule

# Prompts from which the price of noise is computed, and iterations: it settles within a percent or two.
SAMPLE, ROUNDS = 128, 4
# Where prompts weigh the same, the value of a rollout is greatest in a group of at most 3, and falls from there.
NEAR = 4
# Rounding may raise a marginal above the one before it by this share of the row's largest.
ROUNDING = 1e-10


def update_size_rule(
    gain: Gain = "shared",
    update: Update = "scaled",
    weighting: Weighting = "prompt",
    own_noise: float | None = None,
) -> AllocationRule:
    """A rule that values n rollouts at gain(p) times the expected size of their update.

    Args:
        gain: gain of a unit of update: ``shared`` (1: for prompts of the same skill), ``own`` (p (1-p): for the prompt
            itself), ``root`` (between them), ``paper`` (p (1-p)^2).
        update: ``scaled`` advantages, ``unscaled`` ones, or ``mixed``: every mixed group counts as 1 (the paper).
        weighting: whether the loss weighs ``rollout`` or ``prompt`` alike.
        own_noise: None to value the signal alone; a number to subtract the noise of the gradient, of which this is the
            part along the prompt's own direction (`UpdateValue`). The price of noise is then the one that maximises
            signal / sqrt(noise) of the batch.

    Returns:
        ``(forecast, budget, low, high) -> AllocationProblem``, for `KnapsackAllocator`.
    """
    value = UpdateValue(gain, update, weighting, own_noise or 0.0)

    def rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        rates_P, pseudo_count_P = forecast.success_rates_P, forecast.pseudo_count_P
        high, price = min(high, max(budget, 2)), 0.0
        if own_noise is not None:
            price, largest = noise_price(value, rates_P, pseudo_count_P, budget, low, high)
            # Room for prompts beyond the sample, and no wider tables than that.
            high = min(high, 2 * max(largest, -(-budget // rates_P.size)))
        marginals = value.marginals(rates_P, pseudo_count_P, low, high, price)
        return AllocationProblem(marginals, *same_limits(rates_P.size, low, high))

    return rule


def noise_price(
    value: UpdateValue, success_rates_P: FloatArray, pseudo_count_P: FloatArray, budget: int, low: int, high: int
) -> tuple[float, int]:
    """The lambda for which maximising S - lambda V maximises S / sqrt(V): S the signal of a batch, V its noise.

    At the maximum lambda = S / (2 V). Found by fixed-point iteration: plan at a lambda, take S / (2 V) of the plan, and
    plan again, for a sample of the prompts with their share of the budget.

    Returns:
        lambda, at least 0 (0 where there is no noise), and the largest group of the last plan.
    """
    size = success_rates_P.size
    chosen = np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).astype(np.int64))
    rates_P, evidence_P = success_rates_P[chosen], pseudo_count_P[chosen]
    limits = same_limits(chosen.size, low, high)
    share = int(np.clip(budget * chosen.size // size, max(low * chosen.size, 2), high * chosen.size))
    signals, noises = value.signals(rates_P, evidence_P, high), value.noises(rates_P, evidence_P, high)
    rows, price, largest = np.arange(chosen.size), 0.0, high
    for _ in range(ROUNDS):
        counts_P = solve(concave_envelope(signals - price * noises, low), share, *limits).counts_P
        noise = float(noises[rows, counts_P].sum())
        if noise <= 0:
            return 0.0, high
        price, largest = float(signals[rows, counts_P].sum()) / (2 * noise), int(counts_P.max())
    return price, largest


@dataclass(frozen=True, eq=False)
class UpdateValue:
    """Value of n rollouts: gain(p) times expected update size, minus a noise penalty.

    Attributes:
        gain: gain of a unit of update, one of `GAINS`.
        update: kind of advantages, see `update_sizes`.
        weighting: whether rollouts or prompts weigh the same in the loss.
        own_noise: squared length of the gradient component that a prompt's rollouts share, relative to that of their
            individual components; the noise of a group is `update_powers` + own_noise * `update_squares`.
    """

    gain: Gain = "shared"
    update: Update = "scaled"
    weighting: Weighting = "prompt"
    own_noise: float = 0.0

    def signals(self, success_rates_P: FloatArray, pseudo_count_P: FloatArray, high: int) -> FloatArray:
        """E[gain * size] for n = 0..high under beliefs as in `expected_values`; ``[P, high + 1]``."""
        a, b = parameters(success_rates_P, pseudo_count_P)
        return expectations(a, b, _raised_sizes(high, self.update, self.weighting), powers(self.gain))

    def noises(self, success_rates_P: FloatArray, pseudo_count_P: FloatArray, high: int) -> FloatArray:
        """E[power + own_noise * size^2] for n = 0..high; ``[P, high + 1]``."""
        a, b = parameters(success_rates_P, pseudo_count_P)
        return expectations(a, b, self._raised_noise(high))

    def marginals(
        self, success_rates_P: FloatArray, pseudo_count_P: FloatArray, low: int, high: int, price: float = 0.0
    ) -> Callable[[IntArray, int], FloatArray]:
        """Value of each further rollout: marginals of the concave envelope of signal - price * noise.

        Args:
            success_rates_P, pseudo_count_P: beliefs, as in `expected_values`, ``[P]``.
            low, high: least and most rollouts of a prompt.
            price: penalty of a unit of noise, at least 0.

        Returns:
            A function ``(rows, stop) -> [len(rows), stop]``.

        Raises:
            ValueError: as `expected_values`.
        """
        a, b = parameters(success_rates_P, pseudo_count_P)
        factor = powers(self.gain)

        def evaluated(rows: IntArray, width: int) -> FloatArray:
            sizes = _raised_sizes(width, self.update, self.weighting)
            if not price:
                values = expectations(a[rows], b[rows], sizes, factor)
            elif self.gain == "shared":  # one expectation under the same belief
                values = expectations(a[rows], b[rows], sizes - price * self._raised_noise(width))
            else:
                values = expectations(a[rows], b[rows], sizes, factor)
                values -= price * expectations(a[rows], b[rows], self._raised_noise(width))
            return concave_envelope(values, low)

        if self.weighting == "prompt" and not price:  # concave except for the first groups: no chord ends beyond NEAR
            return lambda rows, stop: evaluated(rows, max(stop, min(high, NEAR)))[:, :stop]
        table_P_N = evaluated(np.arange(a.size), high)
        return lambda rows, stop: table_P_N[rows, :stop]

    def _raised_noise(self, high: int) -> FloatArray:
        powers = _raised_powers(high, self.update, self.weighting)
        if not self.own_noise:
            return powers
        noise: FloatArray = powers + self.own_noise * _raised_squares(high, self.update, self.weighting)
        return noise


def concave_envelope(values_P_N: FloatArray, low: int) -> FloatArray:
    """Marginals of the upper concave envelope of a value table, so that greedy price-based selection applies.

    Args:
        values_P_N: value of n rollouts in column n, ``[P, N + 1]``; column 0 is 0 and column 1 is ignored.
        low: least count: 0 (the counts are 0, 2, 3, ...), or at least 2 (they start there).

    Returns:
        Marginals ``[P, N]``, non-increasing from ``low`` on. Where the value is concave they are its own (the first two
        rollouts as two halves); elsewhere it is replaced by chords. An optimal plan lies strictly inside a chord for at
        most one prompt.
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
    """Average the marginals from one vertex of the envelope to the next; returns them and that vertex."""
    columns = np.arange(marginals_P_N.shape[1])
    ahead = columns >= first_P[:, None]
    sums = np.cumsum(np.where(ahead, marginals_P_N, 0.0), axis=1)
    slopes = np.where(ahead, sums / np.maximum(columns + 1 - first_P[:, None], 1), -np.inf)
    last_P = slopes.argmax(axis=1)
    steepest_P = slopes[np.arange(last_P.size), last_P]
    chord = ahead & (columns <= last_P[:, None])
    return np.where(chord, steepest_P[:, None], marginals_P_N), last_P + 1


@lru_cache(maxsize=64)
def _raised_sizes(high: int, update: Update, weighting: Weighting) -> FloatArray:
    return raised(update_sizes(high, update, weighting))


@lru_cache(maxsize=64)
def _raised_powers(high: int, update: Update, weighting: Weighting) -> FloatArray:
    return raised(update_powers(high, update, weighting))


@lru_cache(maxsize=64)
def _raised_squares(high: int, update: Update, weighting: Weighting) -> FloatArray:
    return raised(update_squares(high, update, weighting))
