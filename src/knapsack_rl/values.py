"""What n rollouts are worth to a prompt.

A GRPO group teaches only if its rewards differ. The paper (arXiv 2509.25849, section 3) values n rollouts of a prompt
with success rate p at the chance of that, times what a gradient step on it would gain:

    Value(n, p) = (1 - p^n - (1-p)^n) * p (1-p)^2          (n >= 2; a group of 0 or 1 is worth nothing)

Its home is the *marginal*, the worth of one rollout more, because every term is positive and nothing cancels:

    Value(n+1, p) - Value(n, p) = p (1-p)^2 * (p^n (1-p) + (1-p)^n p)                    (n >= 1)

The marginals fall with n, so from n = 2 on the value is concave, and Value(2)/2 = Value(3) - Value(2).

If p is only believed to follow Beta(a, b), the expectation has a closed form (derived in docs/idea.md): with
M(x, y) = B(a+x, b+y) / B(a, b) = E[p^x (1-p)^y],

    E[Value(n)] = M(1, 2) - M(1+n, 2) - M(1, 2+n),   marginal M(1+n, 3) + M(2, 2+n)

with the same two properties. Uncertainty buys exploration: a prompt never solved in 16 tries keeps a value.
A rival value is one more function of this shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knapsack_rl.notation import FloatArray


def information_gain(success_rates_P: FloatArray) -> FloatArray:
    """Gain in success rate from one gradient step, p (1-p)^2, up to a constant (paper, Proposition 1); ``[P]``."""
    p = success_rates_P
    gain: FloatArray = p * (1 - p) ** 2
    return gain


def nonzero_gradient_probability(success_rates_P: FloatArray, high: int) -> FloatArray:
    """Chance that n rollouts do not all agree, 1 - p^n - (1-p)^n (paper, section 2).

    Args:
        success_rates_P: success rates in [0, 1], ``[P]``.
        high: the largest n.

    Returns:
        ``[P, high + 1]``; column n is for n rollouts, columns 0 and 1 are 0.
    """
    return _summed(_disagreement_marginals(_rates(success_rates_P), high))


def knapsack_marginals(success_rates_P: FloatArray, stop: int) -> FloatArray:
    """Worth of the next rollout at known success rates (paper, equation of Value, differenced).

    Args:
        success_rates_P: success rates in [0, 1], ``[P]``.
        stop: number of columns.

    Returns:
        ``[P, stop]``; column n is Value(n+1) - Value(n), so column 0 is 0 and column 1 is Value(2).

    Raises:
        ValueError: a success rate outside [0, 1].
    """
    p = _rates(success_rates_P)
    marginals: FloatArray = _disagreement_marginals(p, stop) * information_gain(p)[:, None]
    return marginals


def expected_knapsack_marginals(alpha_P: FloatArray, beta_P: FloatArray, stop: int) -> FloatArray:
    """Expectation of `knapsack_marginals` when each success rate is believed to follow Beta(alpha, beta).

    Args:
        alpha_P, beta_P: parameters of the beliefs, positive and finite, ``[P]``.
        stop: number of columns.

    Returns:
        ``[P, stop]``, columns as in `knapsack_marginals`.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """
    a, b = np.asarray(alpha_P, dtype=np.float64), np.asarray(beta_P, dtype=np.float64)
    for name, parameter in (("alpha", a), ("beta", b)):
        wrong = ~((parameter > 0) & np.isfinite(parameter))
        if wrong.any():
            raise ValueError(
                f"{name}_P[{int(np.argmax(wrong))}] is {parameter[wrong][0]}: a Beta belief needs it positive"
            )
    total = a + b
    # Both terms start at M(2, 3). Ratios before products: for strong beliefs the products alone would overflow.
    start = a / total * (a + 1) / (total + 1) * b / (total + 2) * (b + 1) / (total + 3) * (b + 2) / (total + 4)
    counts = np.stack([a, b + 1])
    # M(x+1, y) = M(x, y) (a+x) / (a+b+x+y), and the same in y.
    return _marginals(np.stack([start, start]), lambda n: (counts + (n + 1)) / (total + (n + 4)), stop)


def knapsack_value(success_rates_P: FloatArray, high: int) -> FloatArray:
    """The paper's Value(n, p) for n = 0..high at known success rates; ``[P, high + 1]``."""
    return _summed(knapsack_marginals(success_rates_P, high))


def expected_knapsack_value(alpha_P: FloatArray, beta_P: FloatArray, high: int) -> FloatArray:
    """E[Value(n, p)] for n = 0..high under Beta beliefs; ``[P, high + 1]``."""
    return _summed(expected_knapsack_marginals(alpha_P, beta_P, high))


def _disagreement_marginals(p: FloatArray, stop: int) -> FloatArray:
    """p^n (1-p) + (1-p)^n p for n >= 1, and 0 for n = 0; ``[P, stop]``."""
    both = np.stack([p, 1 - p])
    return _marginals(both * both[::-1], lambda _: both, stop)


def _marginals(terms: FloatArray, ratio: Callable[[int], FloatArray], stop: int) -> FloatArray:
    """The sum of two terms a prompt, ``[2, P]`` at n = 1, that are multiplied by ``ratio(n)`` from n to n + 1.

    A loop over n: its few vectors stay in the cache, and the turned table costs no copy.
    """
    table_N_P = np.zeros((stop, terms.shape[1]))
    for n in range(1, stop):
        np.add(terms[0], terms[1], out=table_N_P[n])
        terms *= ratio(n)
    return table_N_P.T


def _summed(marginals_P_N: FloatArray) -> FloatArray:
    values = np.zeros((marginals_P_N.shape[0], marginals_P_N.shape[1] + 1))
    np.cumsum(marginals_P_N, axis=1, out=values[:, 1:])
    return values


def _rates(success_rates_P: FloatArray) -> FloatArray:
    p = np.asarray(success_rates_P, dtype=np.float64)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise ValueError(f"success_rates_P[{int(np.argmax(wrong))}] is {p[wrong][0]}: a success rate lies in [0, 1]")
    return p
