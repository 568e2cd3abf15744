"""Exact expectations of whatever depends on a group by its size and its successes alone.

If k of n rollouts succeed, a *statistic* T(n, k) of the group has an expectation that is a sum over k. Those sums are
taken for all n up to N at once: n rollouts are n of N drawn without replacement, so E[T(n, .)] is a linear combination
of the N + 1 chances of K successes in N (a Bernstein polynomial of degree n, raised to degree N). These are binomial
where p is known and beta-binomial where it is believed to follow Beta(a, b):

    E[T(n, k)] = sum_K P(K successes in N) * T_up(K, n)

one matrix product for all prompts and all n. A factor p^x (1-p)^y in front of the statistic shifts the belief, for
p^x (1-p)^y Beta(a, b) is E[p^x (1-p)^y] times a Beta(a+x, b+y).
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import FloatArray

# A belief this strong is knowledge.
CERTAIN = 1e12


def parameters(success_rates_P: FloatArray, strength_P: FloatArray) -> tuple[FloatArray, FloatArray]:
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
    chances_P_K = _chances(a + x, b + y, raised_K_N.shape[0] - 1)
    values: FloatArray = (chances_P_K * _moment(a, b, x, y)[:, None]) @ raised_K_N
    return values


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
