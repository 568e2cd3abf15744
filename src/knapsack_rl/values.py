"""Compute the value of n rollouts of a prompt, and the marginal value of each further rollout.

A GRPO group has a nonzero gradient only if its rewards differ. The paper (arXiv 2509.25849, section 3) values n
rollouts of a prompt with success rate p at the probability of that, times the gain from a gradient step on the prompt:

    Value(n, p) = (1 - p^n - (1-p)^n) * p (1-p)^2          (n >= 2; Value(0) = Value(1) = 0)

The code computes *marginals* and sums them, because all terms of a marginal are positive, so that nothing cancels:

    Value(n+1, p) - Value(n, p) = p (1-p)^2 * (p^n (1-p) + (1-p)^n p)                    (n >= 1)

The marginals fall with n, so from n = 2 on the value is concave, and Value(2)/2 = Value(3) - Value(2).

If p follows Beta(a, b), the expectation has a closed form (derived in docs/idea.md): with
M(x, y) = B(a+x, b+y) / B(a, b) = E[p^x (1-p)^y],

    E[Value(n)] = M(1, 2) - M(1+n, 2) - M(1, 2+n),   marginal M(1+n, 3) + M(2, 2+n)

with the same two properties. It is positive for every belief and n >= 2, so that prompts without any success so far are
still explored.

If an earlier success of the prompt is kept (`knapsack_rl.kept`) and replaces a rollout of a group that fails as a
whole, only a group that succeeds as a whole has no gradient (derived in docs/value.md):

    Value(n, p | kept) = (1 - p^n) * p (1-p)^2,   E = M(1, 2) - M(1+n, 2),   marginal M(1+n, 3)          (n >= 2)

And where none is kept, rollouts may find one. It is worth the groups that it saves later: R further groups of m
rollouts, each with probability (1-p)^m of failing as a whole:

    Storing(n, p) = R (1 - (1-p)^n) (1-p)^m * p (1-p)^2,   marginal R M(2, 2+m+n)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knapsack_rl.notation import FloatArray


def information_gain(success_rates_P: FloatArray) -> FloatArray:
    """Compute the gain in success rate from one gradient step, p (1-p)^2 up to a constant, ``[P]`` (Proposition 1)."""
    p = success_rates_P
    gain: FloatArray = p * (1 - p) ** 2
    return gain


def nonzero_gradient_probability(success_rates_P: FloatArray, high: int) -> FloatArray:
    """Compute the probability that n rollouts do not all have the same outcome, 1 - p^n - (1-p)^n (paper, section 2).

    Args:
        success_rates_P: success rates in [0, 1], ``[P]``.
        high: the largest n.

    Returns:
        Probabilities ``[P, high + 1]``; column n is for n rollouts, columns 0 and 1 are 0.
    """
    return _summed(_disagreement_marginals(_rates(success_rates_P), high))


def knapsack_marginals(success_rates_P: FloatArray, stop: int) -> FloatArray:
    """Compute the marginal value of each rollout at known success rates (differences of the paper's Value).

    Args:
        success_rates_P: success rates in [0, 1], ``[P]``.
        stop: number of columns.

    Returns:
        Marginals ``[P, stop]``; column n is Value(n+1) - Value(n), so column 0 is 0 and column 1 is Value(2).

    Raises:
        ValueError: a success rate outside [0, 1].
    """
    p = _rates(success_rates_P)
    marginals: FloatArray = _disagreement_marginals(p, stop) * information_gain(p)[:, None]
    return marginals


def expected_knapsack_marginals(alpha_P: FloatArray, beta_P: FloatArray, stop: int) -> FloatArray:
    """Compute the expectation of `knapsack_marginals` when each success rate follows Beta(alpha, beta).

    Args:
        alpha_P, beta_P: parameters of the beliefs, positive and finite, ``[P]``.
        stop: number of columns.

    Returns:
        Marginals ``[P, stop]``, columns as in `knapsack_marginals`.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """
    a, b = _beta_parameters(alpha_P, beta_P)
    total = a + b
    # Both terms are M(2, 3) at n = 1. Ratios are multiplied, because products of large parameters would overflow.
    start = a / total * (a + 1) / (total + 1) * b / (total + 2) * (b + 1) / (total + 3) * (b + 2) / (total + 4)
    counts = np.stack([a, b + 1])
    # M(x+1, y) = M(x, y) (a+x) / (a+b+x+y), and the same in y.
    return _marginals(np.stack([start, start]), lambda n: (counts + (n + 1)) / (total + (n + 4)), stop)


def kept_success_marginals(alpha_P: FloatArray, beta_P: FloatArray, stop: int) -> FloatArray:
    """Compute `expected_knapsack_marginals` for prompts with a kept success: differences of E[(1 - p^n) p (1-p)^2].

    Args:
        alpha_P, beta_P: parameters of the beliefs, positive and finite, ``[P]``.
        stop: number of columns.

    Returns:
        Marginals ``[P, stop]``; column 0 is 0 and column 1 is the value of two rollouts.
    """
    a, b = _beta_parameters(alpha_P, beta_P)
    total = a + b
    # M(1, 3), from which M(1 + n, 3) follows by ratios.
    start = a / total * b / (total + 1) * (b + 1) / (total + 2) * (b + 2) / (total + 3)
    table = _marginals(start[None] * (a + 1) / (total + 4), lambda n: ((a + (n + 1)) / (total + (n + 4)))[None], stop)
    if stop > 1:
        table[:, 1] += start
    return table


def storing_marginals(alpha_P: FloatArray, beta_P: FloatArray, stop: int, visits: float, group: int) -> FloatArray:
    """Compute what each rollout adds by finding a success to keep: differences of R E[(1 - q^n) q^m p q^2], q = 1 - p.

    Args:
        alpha_P, beta_P: parameters of the beliefs, positive and finite, ``[P]``.
        stop: number of columns.
        visits: R, later groups of the prompt that a kept success may save.
        group: m, rollouts of such a group.

    Returns:
        Marginals ``[P, stop]``; column 0 is 0 and column 1 is for two rollouts.
    """
    a, b = _beta_parameters(alpha_P, beta_P)
    total = a + b
    first = visits * a / total * (a + 1) / (total + 1)
    for y in range(2 + group):
        first = first * (b + y) / (total + 2 + y)

    def ratio(n: int) -> FloatArray:
        found: FloatArray = ((b + (1 + group + n)) / (total + (3 + group + n)))[None]
        return found

    # From M(2, 2 + m) at n = 0.
    table = _marginals((first * ratio(1)[0])[None], lambda n: ratio(n + 1), stop)
    if stop > 1:
        table[:, 1] += first
    return table


def knapsack_value(success_rates_P: FloatArray, high: int) -> FloatArray:
    """Compute the paper's Value(n, p) for n = 0..high at known success rates, ``[P, high + 1]``."""
    return _summed(knapsack_marginals(success_rates_P, high))


def expected_knapsack_value(alpha_P: FloatArray, beta_P: FloatArray, high: int) -> FloatArray:
    """Compute E[Value(n, p)] for n = 0..high under Beta beliefs, ``[P, high + 1]``."""
    return _summed(expected_knapsack_marginals(alpha_P, beta_P, high))


def _disagreement_marginals(p: FloatArray, stop: int) -> FloatArray:
    """Compute p^n (1-p) + (1-p)^n p for n >= 1, and 0 for n = 0; ``[P, stop]``."""
    both = np.stack([p, 1 - p])
    return _marginals(both * both[::-1], lambda _: both, stop)


def _marginals(terms: FloatArray, ratio: Callable[[int], FloatArray], stop: int) -> FloatArray:
    """Sum one or two terms per prompt, ``[1 or 2, P]`` at n = 1, which ``ratio(n)`` multiplies to n + 1; ``[P, stop]``.

    The loop runs over n, so that its few vectors stay in the cache; the result is a transposed view, not a copy.
    """
    table_N_P = np.zeros((stop, terms.shape[1]))
    for n in range(1, stop):
        np.add(terms[0], terms[1], out=table_N_P[n]) if len(terms) > 1 else np.copyto(table_N_P[n], terms[0])
        terms *= ratio(n)
    return table_N_P.T


def _summed(marginals_P_N: FloatArray) -> FloatArray:
    """Values ``[P, N + 1]`` from marginals ``[P, N]``."""
    values = np.zeros((marginals_P_N.shape[0], marginals_P_N.shape[1] + 1))
    np.cumsum(marginals_P_N, axis=1, out=values[:, 1:])
    return values


def _beta_parameters(alpha_P: FloatArray, beta_P: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The parameters as floats, each ``[P]``, if all are positive and finite."""
    a, b = np.asarray(alpha_P, dtype=np.float64), np.asarray(beta_P, dtype=np.float64)
    for name, parameter in (("alpha", a), ("beta", b)):
        wrong = ~((parameter > 0) & np.isfinite(parameter))
        if wrong.any():
            raise ValueError(
                f"{name}_P[{int(np.argmax(wrong))}] is {parameter[wrong][0]}: a Beta belief needs it positive"
            )
    return a, b


def _rates(success_rates_P: FloatArray) -> FloatArray:
    """The success rates as floats, ``[P]``, if all lie in [0, 1]."""
    p = np.asarray(success_rates_P, dtype=np.float64)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise ValueError(f"success_rates_P[{int(np.argmax(wrong))}] is {p[wrong][0]}: a success rate lies in [0, 1]")
    return p
