"""Expected size of GRPO's update by a group of n rollouts (docs/value.md), as an exact sum over its successes.

Let k of n rollouts succeed, and let z be the prompt's log-odds of success. GRPO's group changes z in proportion to

    divided by the group's deviation (ddof = 1):  G = sqrt(n (n-1)) sqrt(k/n (1 - k/n))
    not divided (Dr. GRPO):                       G = n k/n (1 - k/n),            E[G] = (n - 1) p (1-p)

times 1 where every rollout weighs the same, and times 1/n where every prompt does. These are *statistics* T(n, k) of a
group, and their expectation is a sum over k. The sums are taken for all n up to N at once: n rollouts are n of N
sampled without replacement, so E[T(n, .)] is a linear combination of the N + 1 probabilities of K successes in N (a
Bernstein polynomial of degree n, raised to degree N). These are binomial where p is known and beta-binomial where it is
believed to follow Beta(a, b):

    E[T(n, k)] = sum_K P(K successes in N) * T_up(K, n)

one matrix product for all prompts and all n. A factor p^x (1-p)^y in front of the statistic shifts the belief, for
p^x (1-p)^y Beta(a, b) is E[p^x (1-p)^y] times a Beta(a+x, b+y).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np

from knapsack_rl.notation import FloatArray

# A belief with more evidence counts as a known rate.
CERTAIN = 1e12

Gain = Literal["paper", "own", "root", "shared"]
Update = Literal["mixed", "scaled", "unscaled"]
Weighting = Literal["rollout", "prompt"]

# Gain of a unit of update, p^x (1-p)^y, as (x, y): the paper's; for the success rate of the prompt itself (dp/dz);
# between the two; and for prompts of the same skill, independently of this prompt's rate.
GAINS: Mapping[Gain, tuple[float, float]] = {
    "paper": (1.0, 2.0),
    "own": (1.0, 1.0),
    "root": (0.5, 0.5),
    "shared": (0.0, 0.0),
}


@lru_cache(maxsize=64)
def update_sizes(high: int, update: Update, weighting: Weighting) -> FloatArray:
    """Change of a prompt's log-odds by its group, up to a constant of the batch.

    Args:
        high: the largest n.
        update: ``scaled`` or ``unscaled`` advantages; ``mixed`` counts every mixed group as 1, as the paper does.
        weighting: whether rollouts or prompts weigh the same in the loss; ``rollout`` multiplies by n, ``mixed`` too.

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
    """Sum of the squared weighted advantages of a group: its noise in the gradient, up to a constant.

    Rollouts differ in many ways that do not affect the reward, each weighted by the rollout's advantage, and squared
    lengths add up. Scaled advantages have sum of squares n - 1 in every mixed group, unscaled ones n k/n (1 - k/n).

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
    """The squares of `update_sizes`: a group's noise along its own direction; same shape."""
    return _frozen(update_sizes(high, update, weighting) ** 2)


def expected_values(
    success_rates_P: FloatArray, pseudo_count_P: FloatArray, statistic_N_K: FloatArray, gain: Gain = "shared"
) -> FloatArray:
    """E[p^x (1-p)^y T(n, k)] for every n: k successes in n rollouts at a rate p believed to follow a Beta.

    Args:
        success_rates_P: means of the beliefs, in [0, 1], ``[P]``.
        pseudo_count_P: their weights of evidence a + b, positive; infinite where p is known, ``[P]``.
        statistic_N_K: T(n, k), ``[N + 1, N + 1]``, for n and k up to N; entries beyond k = n are ignored.
        gain: gain of a unit of T.

    Returns:
        ``[P, N + 1]``, column n for n rollouts. Exact up to rounding.

    Raises:
        ValueError: a rate outside [0, 1], a pseudo-count that is not positive, or an unknown gain.
    """
    return expectations(*parameters(success_rates_P, pseudo_count_P), raised(statistic_N_K), powers(gain))


def parameters(success_rates_P: FloatArray, pseudo_count_P: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The parameters a and b of the Beta beliefs, ``[P]`` each."""
    p, pseudo_count = np.asarray(success_rates_P, dtype=np.float64), np.asarray(pseudo_count_P, dtype=np.float64)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise ValueError(f"success_rates_P[{int(np.argmax(wrong))}] is {p[wrong][0]}: a success rate lies in [0, 1]")
    wrong = ~(pseudo_count > 0)
    if wrong.any():
        raise ValueError(
            f"pseudo_count_P[{int(np.argmax(wrong))}] is {pseudo_count[wrong][0]}: a belief needs positive evidence"
        )
    pseudo_count = np.minimum(pseudo_count, CERTAIN)
    return p * pseudo_count, (1 - p) * pseudo_count


def expectations(
    a: FloatArray, b: FloatArray, raised_K_N: FloatArray, powers: tuple[float, float] = (0.0, 0.0)
) -> FloatArray:
    """E[p^x (1-p)^y T(n, k)] under Beta(a, b) for n = 0..N.

    Args:
        a, b: from `parameters`, ``[P]``.
        raised_K_N: the statistic, from `raised`, ``[N + 1, N + 1]``.
        powers: x and y, multiples of 1/2 that are at least 0.

    Returns:
        ``[P, N + 1]``, column n for n rollouts. Exact up to rounding.
    """
    x, y = powers
    probabilities_P_K = _probabilities(a + x, b + y, raised_K_N.shape[0] - 1)
    values: FloatArray = (probabilities_P_K * _moment(a, b, x, y)[:, None]) @ raised_K_N
    return values


def raised(statistic_N_K: FloatArray) -> FloatArray:
    """T(n, k) as coefficients of degree N, ``[N + 1, N + 1]``: row K successes in N, column n.

    Degree by degree: leaving out one of m + 1 rollouts with K successes at random leaves K - 1 or K successes.
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


def _probabilities(a: FloatArray, b: FloatArray, size: int) -> FloatArray:
    """Probabilities of 0..size successes in ``size`` rollouts where p follows Beta(a, b).

    Beta-binomial: (a)_K / K! * (b)_(N-K) / (N-K)!, normalised. Each factor of the rising factorials is divided by
    1 + (a+b)/N, so that 128 of them neither overflow nor underflow for any a + b.
    """
    k = np.arange(size)
    scale = (1 + (a + b) / max(size, 1))[:, None]

    def rising(parameter: FloatArray) -> FloatArray:
        steps = np.ones((parameter.size, size + 1))
        np.cumprod((parameter[:, None] + k) / ((1 + k) * scale), axis=1, out=steps[:, 1:])
        return steps

    probabilities = rising(a) * rising(b)[:, ::-1]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


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


def powers(gain: Gain) -> tuple[float, float]:
    """The exponents (x, y) of a gain p^x (1-p)^y.

    Raises:
        ValueError: an unknown gain.
    """
    if gain not in GAINS:
        raise ValueError(f"there is no gain {gain!r}: choose from {', '.join(GAINS)}")
    return GAINS[gain]


def _groups(high: int) -> tuple[FloatArray, FloatArray]:
    """The numbers n as a column and k as a row, with k cut to n, and n = 0 replaced by 1 as a divisor."""
    n = np.maximum(np.arange(high + 1.0), 1.0)[:, None]
    return n, np.minimum(np.arange(high + 1.0)[None, :], n)


def _mixed(n: FloatArray, k: FloatArray) -> FloatArray:
    mixed: FloatArray = ((k > 0) & (k < n)).astype(np.float64)
    return mixed


def _weight(n: FloatArray, weighting: Weighting) -> FloatArray:
    """Weight of a group's mean: its size, or one."""
    if weighting not in ("rollout", "prompt"):
        raise ValueError(f"there is no weighting {weighting!r}: choose rollout or prompt")
    return n if weighting == "rollout" else np.ones_like(n)


def _frozen(table: FloatArray) -> FloatArray:
    table.flags.writeable = False  # shared by all callers through the cache
    return table
