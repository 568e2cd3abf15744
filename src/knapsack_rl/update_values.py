"""What n rollouts are worth under the loss that is really used: the expected size of GRPO's update (docs/value.md).

Let k of n rollouts succeed, and let z be the prompt's log-odds of success. GRPO's group pushes z by

    divided by the group's deviation (ddof = 1):  G = sqrt(n (n-1)) sqrt(k/n (1 - k/n))
    not divided (Dr. GRPO):                       G = n k/n (1 - k/n),            E[G] = (n - 1) p (1-p)

times 1 where every rollout weighs the same, and times 1/n where every prompt does. What a group is worth is then a
function of n and k, and its expectation under a belief about p an exact sum (`group_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from knapsack_rl.envelope import concave_envelope
from knapsack_rl.group_sums import expectations, parameters, raised
from knapsack_rl.notation import FloatArray, IntArray

Gain = Literal["paper", "own", "root", "shared"]
Update = Literal["mixed", "scaled", "unscaled"]
Weighting = Literal["rollout", "prompt"]

# What a unit of update gains, p^x (1-p)^y: the paper's; the success rate of the prompt itself (dp/dz); half-way; and
# prompts that share its skill, for which it does not matter how hard this one is.
GAINS: Mapping[Gain, tuple[float, float]] = {
    "paper": (1.0, 2.0),
    "own": (1.0, 1.0),
    "root": (0.5, 0.5),
    "shared": (0.0, 0.0),
}
# Where prompts weigh alike the worth of a rollout is greatest in a group of at most 3, and falls from there.
NEAR = 4


@lru_cache(maxsize=64)
def update_sizes(high: int, update: Update, weighting: Weighting) -> FloatArray:
    """What a group pushes its prompt's log-odds by, up to a constant of the batch.

    Args:
        high: the largest n.
        update: ``scaled`` or ``unscaled`` advantages; ``mixed`` counts every mixed group as a push of 1, as the paper.
        weighting: whether rollouts or prompts weigh the same. ``mixed`` knows no sizes: with ``rollout`` it is times n.

    Returns:
        ``[high + 1, high + 1]``: row n, column k successes; 0 where there is no gradient.

    Raises:
        ValueError: an unknown update or weighting.
    """
    n, k = _groups(high)
    spread = k * (n - k) / n**2
    match update:
        case "mixed":
            size = (spread > 0).astype(np.float64)
        case "scaled":
            size = np.sqrt((n - 1) / n * spread)
        case "unscaled":
            size = spread
        case _:
            raise ValueError(f"there is no update {update!r}: choose mixed, scaled or unscaled")
    return _frozen(size * _weight(n, weighting))


@lru_cache(maxsize=64)
def update_powers(high: int, update: Update, weighting: Weighting) -> FloatArray:
    """Sum of the squared weighted advantages of a group: the noise that it adds to the gradient, up to a constant.

    Rollouts differ in a thousand ways that decide nothing, and each pulls by its own advantage: squared lengths add up.
    Scaled advantages have sum of squares n - 1 in every mixed group, unscaled ones n k/n (1 - k/n).

    Returns:
        ``[high + 1, high + 1]``, rows and columns as in `update_sizes`.

    Raises:
        ValueError: an unknown update or weighting.
    """
    n, k = _groups(high)
    squares = n * update_sizes(high, "unscaled", "prompt") if update == "unscaled" else (n - 1) * _mixed(n, k)
    return _frozen(squares * (_weight(n, weighting) / n) ** 2)


@lru_cache(maxsize=64)
def update_squares(high: int, update: Update, weighting: Weighting) -> FloatArray:
    """The squares of `update_sizes`: what a group adds to the gradient along its own direction; same shape."""
    return _frozen(update_sizes(high, update, weighting) ** 2)


def expected_values(
    success_rates_P: FloatArray, strength_P: FloatArray, statistic_N_K: FloatArray, gain: Gain = "shared"
) -> FloatArray:
    """E[p^x (1-p)^y T(n, k)] for every n: k successes in n rollouts at a rate p believed to follow a Beta.

    Args:
        success_rates_P: means of the beliefs, in [0, 1], ``[P]``.
        strength_P: their weights of evidence a + b, positive; infinite where p is known, ``[P]``.
        statistic_N_K: T(n, k), ``[N + 1, N + 1]``, for n and k up to N; what lies beyond k = n is ignored.
        gain: of a unit of T.

    Returns:
        ``[P, N + 1]``, column n for n rollouts. Exact up to rounding.

    Raises:
        ValueError: a rate outside [0, 1], a strength that is not positive, or an unknown gain.
    """
    return expectations(*parameters(success_rates_P, strength_P), raised(statistic_N_K), _powers(gain))


@dataclass(frozen=True, eq=False)
class UpdateValue:
    """Which value n rollouts have: gain(p) times the size of the update, less what its noise costs.

    Attributes:
        gain: what a unit of update gains, one of `GAINS`.
        update: how advantages are made, see `update_sizes`.
        weighting: whether the loss weighs rollouts or prompts alike.
        own_noise: squared length of the gradient that a prompt's rollouts share, in units of that of what tells them
            apart; the noise of a group is `update_powers` + own_noise * `update_squares`.
    """

    gain: Gain = "shared"
    update: Update = "scaled"
    weighting: Weighting = "prompt"
    own_noise: float = 0.0

    def signals(self, success_rates_P: FloatArray, strength_P: FloatArray, high: int) -> FloatArray:
        """E[gain * size] for n = 0..high under beliefs as in `expected_values`; ``[P, high + 1]``."""
        a, b = parameters(success_rates_P, strength_P)
        return expectations(a, b, _raised_sizes(high, self.update, self.weighting), _powers(self.gain))

    def noises(self, success_rates_P: FloatArray, strength_P: FloatArray, high: int) -> FloatArray:
        """E[power + own_noise * size^2] for n = 0..high; ``[P, high + 1]``."""
        a, b = parameters(success_rates_P, strength_P)
        return expectations(a, b, self._raised_noise(high))

    def marginals(
        self, success_rates_P: FloatArray, strength_P: FloatArray, low: int, high: int, price: float = 0.0
    ) -> Callable[[IntArray, int], FloatArray]:
        """Worth of each rollout as the solver asks for it: of the concave envelope of signal - price * noise.

        Args:
            success_rates_P, strength_P: beliefs, as in `expected_values`, ``[P]``.
            low, high: least and most rollouts of a prompt.
            price: what a unit of noise costs, at least 0.

        Returns:
            A function ``(rows, stop) -> [len(rows), stop]``.

        Raises:
            ValueError: as `expected_values`.
        """
        a, b = parameters(success_rates_P, strength_P)
        powers = _powers(self.gain)

        def evaluated(rows: IntArray, width: int) -> FloatArray:
            sizes = _raised_sizes(width, self.update, self.weighting)
            if not price:
                values = expectations(a[rows], b[rows], sizes, powers)
            elif self.gain == "shared":  # both are expected under one belief
                values = expectations(a[rows], b[rows], sizes - price * self._raised_noise(width))
            else:
                values = expectations(a[rows], b[rows], sizes, powers)
                values -= price * expectations(a[rows], b[rows], self._raised_noise(width))
            return concave_envelope(values, low)

        if self.weighting == "prompt" and not price:  # concave but for the first groups: no chord ends beyond NEAR
            return lambda rows, stop: evaluated(rows, max(stop, min(high, NEAR)))[:, :stop]
        table_P_N = evaluated(np.arange(a.size), high)
        return lambda rows, stop: table_P_N[rows, :stop]

    def _raised_noise(self, high: int) -> FloatArray:
        powers = _raised_powers(high, self.update, self.weighting)
        if not self.own_noise:
            return powers
        noise: FloatArray = powers + self.own_noise * _raised_squares(high, self.update, self.weighting)
        return noise


@lru_cache(maxsize=64)
def _raised_sizes(high: int, update: Update, weighting: Weighting) -> FloatArray:
    return raised(update_sizes(high, update, weighting))


@lru_cache(maxsize=64)
def _raised_powers(high: int, update: Update, weighting: Weighting) -> FloatArray:
    return raised(update_powers(high, update, weighting))


@lru_cache(maxsize=64)
def _raised_squares(high: int, update: Update, weighting: Weighting) -> FloatArray:
    return raised(update_squares(high, update, weighting))


def _powers(gain: Gain) -> tuple[float, float]:
    if gain not in GAINS:
        raise ValueError(f"there is no gain {gain!r}: choose from {', '.join(GAINS)}")
    return GAINS[gain]


def _groups(high: int) -> tuple[FloatArray, FloatArray]:
    """The numbers n as a column and k as a row, with k cut to n, and n = 0 as 1 so that nothing divides by it."""
    n = np.maximum(np.arange(high + 1.0), 1.0)[:, None]
    return n, np.minimum(np.arange(high + 1.0)[None, :], n)


def _mixed(n: FloatArray, k: FloatArray) -> FloatArray:
    mixed: FloatArray = ((k > 0) & (k < n)).astype(np.float64)
    return mixed


def _weight(n: FloatArray, weighting: Weighting) -> FloatArray:
    """What a group's mean rollout weighs: its size, or one."""
    if weighting not in ("rollout", "prompt"):
        raise ValueError(f"there is no weighting {weighting!r}: choose rollout or prompt")
    return n if weighting == "rollout" else np.ones_like(n)


def _frozen(table: FloatArray) -> FloatArray:
    table.flags.writeable = False  # it is shared by all callers
    return table
