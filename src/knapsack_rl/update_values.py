"""What n rollouts are worth under the loss that is really used: the expected size of GRPO's update (docs/value.md).

Let k of n rollouts succeed, and let z be the prompt's log-odds of success. GRPO's group pushes z by

    divided by the group's deviation (ddof = 1):  G = sqrt(n (n-1)) sqrt(k/n (1 - k/n))
    not divided (Dr. GRPO):                       G = n k/n (1 - k/n),            E[G] = (n - 1) p (1-p)

times 1 where every rollout weighs the same, and times 1/n where every prompt does. So whatever a group is worth is a
function T(n, k), a *statistic*, and its expectation a sum over k. Those sums are taken for all n at once: n rollouts
are n of N drawn without replacement, so E[T(n, .)] is a linear combination of the N + 1 chances of K successes in N (a
Bernstein polynomial of degree n, raised to degree N). These are binomial where p is known and beta-binomial where it
is believed to follow Beta(a, b), so one matrix product gives exact expectations under beliefs:

    E[T(n, k)] = sum_K P(K successes in N) * T_up(K, n)

A gain p^x (1-p)^y in front of the statistic shifts the belief, for p^x (1-p)^y Beta(a, b) is a Beta(a+x, b+y) again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

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
# A belief this strong is knowledge.
CERTAIN = 1e12
# Rounding may lift a marginal above the one before it by this share of the row's largest.
ROUNDING = 1e-10
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
    return _expected(*_parameters(success_rates_P, strength_P), raised(statistic_N_K), gain)


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
        a, b = _parameters(success_rates_P, strength_P)
        return _expected(a, b, _raised_sizes(high, self.update, self.weighting), self.gain)

    def noises(self, success_rates_P: FloatArray, strength_P: FloatArray, high: int) -> FloatArray:
        """E[power + own_noise * size^2] for n = 0..high; ``[P, high + 1]``."""
        a, b = _parameters(success_rates_P, strength_P)
        return _expected(a, b, self._raised_noise(high), "shared")

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
        a, b = _parameters(success_rates_P, strength_P)

        def evaluated(rows: IntArray, width: int) -> FloatArray:
            sizes = _raised_sizes(width, self.update, self.weighting)
            if not price:
                values = _expected(a[rows], b[rows], sizes, self.gain)
            elif self.gain == "shared":  # both are expected under one belief
                values = _expected(a[rows], b[rows], sizes - price * self._raised_noise(width), "shared")
            else:
                values = _expected(a[rows], b[rows], sizes, self.gain)
                values -= price * _expected(a[rows], b[rows], self._raised_noise(width), "shared")
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


def _expected(a: FloatArray, b: FloatArray, raised_K_N: FloatArray, gain: Gain) -> FloatArray:
    if gain not in GAINS:
        raise ValueError(f"there is no gain {gain!r}: choose from {', '.join(GAINS)}")
    x, y = GAINS[gain]
    chances_P_K = _chances(a + x, b + y, raised_K_N.shape[0] - 1)
    values: FloatArray = (chances_P_K * _moment(a, b, x, y)[:, None]) @ raised_K_N
    return values


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


def _chances(a: FloatArray, b: FloatArray, size: int) -> FloatArray:
    """Chances of 0..size successes in ``size`` rollouts if p follows Beta(a, b), or is a / (a + b) if that is infinite.

    Beta-binomial: (a)_K / K! * (b)_(N-K) / (N-K)!, normalised. Each factor of the rising factorials is divided by
    1 + (a+b)/N, so that 128 of them neither overflow nor vanish, however strong the belief.
    """
    k = np.arange(size)
    scale = (1 + (a + b) / max(size, 1))[:, None]

    def rising(parameter: FloatArray) -> FloatArray:
        steps = np.ones((parameter.size, size + 1))
        np.cumprod((parameter[:, None] + k) / ((1 + k) * scale), axis=1, out=steps[:, 1:])
        return steps

    chances = rising(a) * rising(b)[:, ::-1]
    chances /= chances.sum(axis=1, keepdims=True)
    return chances


def raised(statistic_N_K: FloatArray) -> FloatArray:
    """T(n, k) as coefficients of degree N, ``[N + 1, N + 1]``: row K successes in N, column n.

    Degree by degree: of m + 1 rollouts with K successes leave one out at random, and K - 1 or K successes are left.
    """
    size = statistic_N_K.shape[0] - 1
    up = np.zeros((size + 1, size + 1))
    up[0, 0] = statistic_N_K[0, 0]
    for m in range(1, size + 1):
        k = np.arange(m + 1.0)[:, None]
        previous = up[: m + 1, :m].copy()
        up[: m + 1, :m] = (1 - k / m) * previous
        up[1 : m + 1, :m] += k[1:] / m * previous[:-1]
        up[: m + 1, m] = statistic_N_K[m, : m + 1]
    return up


def _moment(a: FloatArray, b: FloatArray, x: float, y: float) -> FloatArray:
    """E[p^x (1-p)^y] under Beta(a, b), ``[P]``."""
    moment: FloatArray = _gamma_ratio(a, x) * _gamma_ratio(b, y) / _gamma_ratio(a + b, x + y)
    return moment


def _gamma_ratio(a: FloatArray, x: float) -> FloatArray:
    """Gamma(a + x) / Gamma(a) for x = 0, 1/2, 1, ...; at a = 0 its limit.

    Halves by Stirling's series of the ratio, from a + 16 on, where its error is below 2e-9 (DLMF 5.11.13).
    """
    if x >= 1:
        whole: FloatArray = (a + x - 1) * _gamma_ratio(a, x - 1)
        return whole
    if x == 0:
        return np.ones_like(a)
    far = 1 / (a + 16)
    ratio = (1 - far / 8 * (1 - far / 16 * (1 + far * 5 / 8 * (1 - far * 21 / 160)))) / np.sqrt(far)
    for i in range(16):
        ratio = ratio * ((a + i) / (a + i + 0.5))
    return ratio


def _parameters(success_rates_P: FloatArray, strength_P: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The parameters a and b of the Beta beliefs, ``[P]`` each."""
    p, strength = np.asarray(success_rates_P, dtype=np.float64), np.asarray(strength_P, dtype=np.float64)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise ValueError(f"success_rates_P[{int(np.argmax(wrong))}] is {p[wrong][0]}: a success rate lies in [0, 1]")
    wrong = ~(strength > 0)
    if wrong.any():
        raise ValueError(
            f"strength_P[{int(np.argmax(wrong))}] is {strength[wrong][0]}: a belief needs positive evidence"
        )
    strength = np.minimum(strength, CERTAIN)
    return p * strength, (1 - p) * strength
