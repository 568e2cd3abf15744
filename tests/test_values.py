from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.values import (
    expected_knapsack_marginals,
    expected_knapsack_value,
    information_gain,
    knapsack_marginals,
    knapsack_value,
    nonzero_gradient_probability,
)
from strategies import evidence, rates

HIGH = 128


def exact_value(n: int, p: Fraction) -> Fraction:
    """The paper's formula, in exact arithmetic."""
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2 if n >= 2 else Fraction(0)


def exact_moment(x: int, y: int, a: Fraction, b: Fraction) -> Fraction:
    """E[p^x (1-p)^y] under Beta(a, b), as a ratio of rising factorials."""
    above = math.prod((a + i for i in range(x)), start=Fraction(1)) * math.prod(
        (b + i for i in range(y)), start=Fraction(1)
    )
    return above / math.prod((a + b + i for i in range(x + y)), start=Fraction(1))


def exact_expected_value(n: int, a: Fraction, b: Fraction) -> Fraction:
    if n < 2:
        return Fraction(0)
    return exact_moment(1, 2, a, b) - exact_moment(1 + n, 2, a, b) - exact_moment(1, 2 + n, a, b)


@given(st.integers(0, 64).map(lambda k: Fraction(k, 64)))
def test_marginals_are_differences_of_the_paper_s_value_in_exact_arithmetic(p: Fraction) -> None:
    exact = [float(exact_value(n + 1, p) - exact_value(n, p)) for n in range(40)]
    np.testing.assert_allclose(knapsack_marginals(np.array([float(p)]), 40)[0], exact, rtol=1e-12, atol=0)


@given(st.integers(1, 400), st.integers(1, 400))
def test_expected_marginals_in_exact_arithmetic(eighths_a: int, eighths_b: int) -> None:
    a, b = Fraction(eighths_a, 8), Fraction(eighths_b, 8)
    exact = [float(exact_expected_value(n + 1, a, b) - exact_expected_value(n, a, b)) for n in range(24)]
    found = expected_knapsack_marginals(np.array([float(a)]), np.array([float(b)]), 24)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=0)


@given(evidence, evidence)
def test_expected_marginals_are_the_closed_form_of_the_docs(a: float, b: float) -> None:
    """M(1+n, 3) + M(2, 2+n), computed independently by log-gamma."""

    def moment(x: int, y: int) -> float:
        logs = [math.lgamma(a + x), -math.lgamma(a), math.lgamma(b + y), -math.lgamma(b)]
        return math.exp(math.fsum([*logs, math.lgamma(a + b), -math.lgamma(a + b + x + y)]))

    found = expected_knapsack_marginals(np.array([a]), np.array([b]), HIGH)[0]
    closed = [0.0] + [moment(1 + n, 3) + moment(2, 2 + n) for n in range(1, HIGH)]
    np.testing.assert_allclose(found, closed, rtol=1e-8)


def test_expected_value_is_the_mean_over_the_belief() -> None:
    rng = np.random.default_rng(0)
    for a, b in ((0.5, 16.5), (3.0, 5.0), (16.5, 0.5)):
        mean = knapsack_value(rng.beta(a, b, 200_000), 32).mean(axis=0)
        np.testing.assert_allclose(
            expected_knapsack_value(np.array([a]), np.array([b]), 32)[0], mean, rtol=0.03, atol=1e-6
        )


@given(st.lists(rates, min_size=1, max_size=5))
def test_point_values_are_concave_as_the_solver_requires(found: list[float]) -> None:
    assert_concave(knapsack_value(np.array(found), HIGH))


@given(st.lists(st.tuples(evidence, evidence), min_size=1, max_size=5))
def test_expected_values_are_concave_as_the_solver_requires(pairs: list[tuple[float, float]]) -> None:
    alpha, beta = np.array(pairs).T
    assert_concave(expected_knapsack_value(alpha, beta, HIGH))


def assert_concave(values_P_N: np.ndarray) -> None:
    """0 for n = 0 and 1, then concave and non-decreasing, and Value(2)/2 = Value(3) - Value(2)."""
    marginals = np.diff(values_P_N, axis=1)
    assert (values_P_N[:, :2] == 0).all()
    assert (marginals >= 0).all()
    assert (marginals[:, 2:] <= marginals[:, 1:-1] * (1 + 1e-9) + 1e-15).all()
    np.testing.assert_allclose(values_P_N[:, 2] / 2, values_P_N[:, 3] - values_P_N[:, 2], rtol=1e-9, atol=1e-15)


@given(st.lists(rates, min_size=1, max_size=5), st.integers(0, 40))
def test_value_is_the_probability_of_a_gradient_times_its_gain(found: list[float], high: int) -> None:
    p = np.array(found)
    probability = nonzero_gradient_probability(p, high)
    assert probability.shape == (p.size, high + 1)
    n = np.arange(2, high + 1)
    np.testing.assert_allclose(probability[:, 2:], 1 - p[:, None] ** n - (1 - p[:, None]) ** n, atol=1e-14)
    np.testing.assert_allclose(knapsack_value(p, high), probability * information_gain(p)[:, None], rtol=1e-12)


def test_the_gain_is_largest_at_one_third() -> None:
    p = np.linspace(0, 1, 3001)
    gain = information_gain(p)
    assert p[gain.argmax()] == pytest.approx(1 / 3, abs=1e-9)
    assert gain.max() == pytest.approx(4 / 27)
    assert knapsack_value(np.array([1 / 3]), 200)[0, -1] == pytest.approx(4 / 27)


def test_success_rates_of_zero_and_one_have_no_value() -> None:
    assert (knapsack_value(np.array([0.0, 1.0]), HIGH) == 0).all()


@pytest.mark.parametrize("p", [0.0, 1 / 16, 0.5, 0.93, 1.0])
def test_the_expectation_tends_to_the_point_value_as_evidence_grows(p: float) -> None:
    point = knapsack_value(np.array([p]), HIGH)[0]
    errors = []
    for rollouts in (1e2, 1e4, 1e6, 1e8):
        alpha, beta = np.array([p * rollouts + 0.5]), np.array([(1 - p) * rollouts + 0.5])
        errors.append(np.abs(expected_knapsack_value(alpha, beta, HIGH)[0] - point).max())
    assert errors[-1] < 1e-6
    assert all(later < earlier for earlier, later in pairwise(errors))


@pytest.mark.parametrize("a", [1e-300, 1e-9, 1.0, 1e9, 1e60])
@pytest.mark.parametrize("b", [1e-300, 1e-9, 1.0, 1e9, 1e60])
def test_extreme_beliefs_stay_finite(a: float, b: float) -> None:
    marginals = expected_knapsack_marginals(np.array([a]), np.array([b]), HIGH)
    assert np.isfinite(marginals).all()
    assert (marginals >= 0).all()
    if a == b >= 1e9:
        np.testing.assert_allclose(marginals, knapsack_marginals(np.array([0.5]), HIGH), rtol=1e-4, atol=1e-30)


def test_a_prompt_never_solved_has_a_positive_value_only_under_a_belief() -> None:
    assert knapsack_value(np.array([0.0]), 8)[0, 8] == 0
    assert expected_knapsack_value(np.array([0.5]), np.array([16.5]), 8)[0, 8] > 1e-3


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_narrow_tables_are_the_first_columns_of_wide_ones(stop: int) -> None:
    wide = knapsack_marginals(np.array([0.2, 0.9]), 9)
    np.testing.assert_array_equal(knapsack_marginals(np.array([0.2, 0.9]), stop), wide[:, :stop])
    a, b = np.array([0.5, 3.0]), np.array([2.0, 1.0])
    np.testing.assert_array_equal(
        expected_knapsack_marginals(a, b, stop), expected_knapsack_marginals(a, b, 9)[:, :stop]
    )


def test_no_prompts() -> None:
    assert knapsack_marginals(np.zeros(0), 5).shape == (0, 5)
    assert expected_knapsack_value(np.zeros(0), np.zeros(0), 5).shape == (0, 6)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_named(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"success_rates_P\[1\] is {wrong}"):
        knapsack_value(np.array([0.5, wrong, 0.5]), 8)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_belief_without_evidence_is_named(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha_P\[1\] is {wrong}"):
        expected_knapsack_marginals(np.array([1.0, wrong]), np.ones(2), 8)
    with pytest.raises(ValueError, match=rf"beta_P\[0\] is {wrong}"):
        expected_knapsack_marginals(np.ones(2), np.array([wrong, 1.0]), 8)
