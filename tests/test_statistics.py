"""Statistics of a comparison: by law, by hand, and as the package ``rliable`` computes them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knapsack_arena.statistics import (
    holm,
    interquartile_mean,
    normalised,
    probability_of_improvement,
    restricted_mean,
    stratified_bootstrap,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rliable.json").read_text(encoding="utf-8"))
X, Y = np.array(GOLDEN["x"]), np.array(GOLDEN["y"])
SCORES = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(-9, 9))


def test_estimates_are_those_of_rliable() -> None:
    """Made by ``python tests/golden/make_rliable.py``."""
    assert interquartile_mean(X) == pytest.approx(GOLDEN["iqm"], rel=1e-12)
    assert interquartile_mean(Y) == pytest.approx(GOLDEN["iqm of y"], rel=1e-12)
    assert probability_of_improvement(X, Y) == pytest.approx(GOLDEN["probability of improvement"], rel=1e-12)


def test_intervals_are_those_of_rliable_up_to_the_draws() -> None:
    low_high = stratified_bootstrap(interquartile_mean, X, replications=5000)
    assert low_high == pytest.approx(GOLDEN["iqm interval"], abs=0.05)
    low_high = stratified_bootstrap(probability_of_improvement, X, Y, replications=5000)
    assert low_high == pytest.approx(GOLDEN["probability of improvement interval"], abs=0.03)
    # Regimes that are pooled, and seeds that are drawn for all regimes at once, have other intervals.
    random = np.random.default_rng(0)
    pooled = [interquartile_mean(random.choice(X.ravel(), X.shape)) for _ in range(2000)]
    at_once = [interquartile_mean(X[random.integers(len(X), size=len(X))]) for _ in range(2000)]
    for other in (pooled, at_once):
        assert np.quantile(other, [0.025, 0.975]) != pytest.approx(GOLDEN["iqm interval"], abs=0.05)
    assert stratified_bootstrap(interquartile_mean, X, replications=50, seed=1) == stratified_bootstrap(
        interquartile_mean, X, replications=50, seed=1
    )


@given(SCORES, st.integers(1, 5), st.integers(-5, 5))
def test_the_interquartile_mean_moves_with_its_scores(scores: np.ndarray, scale: int, shift: int) -> None:
    found = interquartile_mean(scores)
    assert scores.min() <= found <= scores.max()
    assert interquartile_mean(scores * scale + shift) == pytest.approx(found * scale + shift)
    assert interquartile_mean(-scores) == pytest.approx(-found)


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert interquartile_mean(np.array([[1e9, 1.0], [2.0, -1e9]])) == 1.5
    assert interquartile_mean(np.array([[1.0, 2.0, 9.0]])) == 4


@given(SCORES)
def test_the_probability_of_improvement_is_one_half_against_itself(scores: np.ndarray) -> None:
    assert probability_of_improvement(scores, scores) == pytest.approx(0.5)
    assert probability_of_improvement(scores + 100, scores) == 1
    other = scores[::-1] * 2 - 1
    both = probability_of_improvement(scores, other) + probability_of_improvement(other, scores)
    assert both == pytest.approx(1)


def test_seeds_are_drawn_within_regimes() -> None:
    """Two constant regimes far apart: the mean has no spread, as it would if regimes were drawn too."""
    scores = np.array([[0.0, 100.0]] * 4)
    assert stratified_bootstrap(np.mean, scores, replications=100) == (50, 50)


def test_the_interval_of_a_mean_of_two_runs_by_hand() -> None:
    """0 and 1 drawn twice: means 0, 1/2 and 1 with probability 1/4, 1/2, 1/4."""
    scores = np.array([[0.0], [1.0]])
    assert stratified_bootstrap(np.mean, scores, replications=2000) == (0, 1)
    assert stratified_bootstrap(np.mean, scores, replications=2000, level=0.4) == (0.5, 0.5)


def test_uniform_is_0_and_the_oracle_1() -> None:
    uniform, oracle = np.array([[1.0, 10.0], [3.0, 10.0]]), np.array([[4.0, 5.0]])
    np.testing.assert_allclose(normalised(uniform, uniform, oracle).mean(axis=0), 0)
    np.testing.assert_allclose(normalised(oracle, uniform, oracle), 1)
    np.testing.assert_allclose(normalised(np.array([[3.0, 7.5]]), uniform, oracle), 0.5)
    with pytest.raises(ValueError, match=r"level in regimes \[1\]"):
        normalised(uniform, uniform, np.array([[4.0, 10.0]]))


def test_holm_by_hand() -> None:
    """.01 * 4, .02 * 3, .03 * 2 (raised to the one before), .6."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.6, "b": 0.02})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.6})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_no_adjustment_and_bonferroni(values: list[float]) -> None:
    claims = {str(i): value for i, value in enumerate(values)}
    found = holm(claims)
    for claim, value in claims.items():
        assert value <= found[claim] <= min(1, value * len(values)) + 1e-12
    for a, b in itertools.combinations(claims, 2):
        assert (found[a] - found[b]) * (claims[a] - claims[b]) >= 0


@given(arrays(np.float64, st.integers(1, 8), elements=st.integers(0, 20)), st.integers(0, 25))
def test_the_restricted_mean_without_censored_runs_is_a_mean(times: np.ndarray, horizon: int) -> None:
    found = restricted_mean(times, np.ones(times.size, dtype=bool), float(horizon))
    assert found == pytest.approx(np.minimum(times, horizon).mean())


@given(arrays(np.float64, st.integers(1, 8), elements=st.integers(0, 20)), st.data())
def test_the_restricted_mean_lies_between_reaching_at_once_and_never(times: np.ndarray, data: st.DataObject) -> None:
    reached = data.draw(arrays(np.bool_, times.size))
    horizon = float(times.max())
    found = restricted_mean(times, reached, horizon)
    assert times.mean() - 1e-9 <= found <= np.where(reached, times, horizon).mean() + 1e-9


def test_the_restricted_mean_by_hand() -> None:
    """Of four runs one reaches at 2, one ends at 3, one reaches at 5: 1 to 2, 3/4 to 5, 3/4 * 1/2 to 8."""
    times, reached = np.array([2.0, 3.0, 5.0, 8.0]), np.array([True, False, True, False])
    assert restricted_mean(times, reached, 8.0) == pytest.approx(2 + 0.75 * 3 + 0.375 * 3)
    with pytest.raises(ValueError, match=r"the longest run ends at 8 .* horizon 9"):
        restricted_mean(times, reached, 9.0)
    with pytest.raises(ValueError, match="there is no run"):
        restricted_mean(np.zeros(0), np.zeros(0, dtype=bool), 1.0)
