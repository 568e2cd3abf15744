"""The online regression and the pseudo-count estimator, compared with stationarity conditions and exact likelihoods."""

from __future__ import annotations

import math

import numpy as np
import pytest

from knapsack_rl.beliefs.online_logistic import (
    Concentration,
    OnlineLogistic,
    beta_binomial_log_likelihood,
    logistic,
    logit,
)


def test_logistic_and_logit_are_inverse_and_do_not_overflow() -> None:
    rates = np.array([0.01, 0.3, 0.5, 0.9])
    np.testing.assert_allclose(logistic(logit(rates)), rates)
    np.testing.assert_array_equal(logistic(np.array([-1e4, 1e4])), [0.0, 1.0])
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def world(seed: int, prompts: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = np.concatenate([rng.standard_normal((prompts, len(weights) - 1)), np.ones((prompts, 1))], axis=1)
    attempts = rng.integers(1, 9, prompts)
    return features, rng.binomial(attempts, logistic(features @ weights)), attempts


def test_one_batch_maximises_the_penalised_likelihood() -> None:
    features, successes, attempts = world(0, 300, np.array([1.0, -0.5, 0.2]))
    learner = OnlineLogistic(np.zeros(3), np.array([2.0, 2.0, 0.1]), 1.0)
    learner.learn(features, successes, attempts)
    rates = logistic(features @ learner.weights_F)
    gradient = features.T @ (successes - attempts * rates) - learner.ridge_F * learner.weights_F
    assert np.abs(gradient).max() < 0.05  # the curvature is several hundred
    curvature = (features * (attempts * rates * (1 - rates))[:, None]).T @ features
    np.testing.assert_allclose(learner.precision_F_F, np.diag(learner.ridge_F) + curvature, rtol=0.02)


def test_many_batches_give_the_weights_of_one() -> None:
    features, successes, attempts = world(1, 600, np.array([0.8, -0.4, 0.3]))
    whole, parts = (OnlineLogistic(np.zeros(3), np.ones(3), 1.0) for _ in range(2))
    whole.learn(features, successes, attempts)
    for rows in np.split(np.arange(600), 12):
        parts.learn(features[rows], successes[rows], attempts[rows])
    np.testing.assert_allclose(parts.weights_F, whole.weights_F, atol=0.05)


def test_the_weights_decay_to_the_prior() -> None:
    learner = OnlineLogistic(np.array([0.5]), np.ones(1), 0.8)
    learner.learn(np.ones((50, 1)), np.full(50, 4), np.full(50, 4))
    assert learner.weights_F[0] > 2
    for _ in range(100):
        learner.learn(np.zeros((1, 1)), np.zeros(1), np.ones(1))  # no information about the weight
    assert learner.weights_F[0] == pytest.approx(0.5, abs=1e-3)
    assert learner.precision_F_F[0, 0] == pytest.approx(1.0, abs=1e-2)


def test_the_weights_follow_a_change() -> None:
    learner = OnlineLogistic(np.zeros(3), np.ones(3), 0.9)
    for seed in range(40):
        weights = np.array([1.0, 0.0, 0.0]) if seed < 20 else np.array([-1.0, 1.0, 0.5])
        learner.learn(*world(seed, 60, weights))
    np.testing.assert_allclose(learner.weights_F, weights, atol=0.3)


def test_the_beta_binomial_likelihood_agrees_with_lgamma() -> None:
    def exact(a: float, b: float, k: int, n: int) -> float:
        log_beta = lambda x, y: math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)  # noqa: E731
        return log_beta(a + k, b + n - k) - log_beta(a, b)

    alpha, beta = np.array([[0.3, 2.0], [5.0, 40.0]]), np.array([[0.1, 3.0], [0.5, 90.0]])
    successes, attempts = np.array([0, 37]), np.array([8, 128])
    found = beta_binomial_log_likelihood(alpha, beta, successes, attempts)
    for p in range(2):
        for g in range(2):
            assert found[p, g] == pytest.approx(exact(alpha[p, g], beta[p, g], successes[p], attempts[p]), rel=1e-9)


@pytest.mark.parametrize("pseudo_count", [1.0, 7.0, 64.0])
def test_the_pseudo_count_that_generated_the_outcomes_is_estimated(pseudo_count: float) -> None:
    rng = np.random.default_rng(3)
    concentration = Concentration(1.0)
    evidence = np.full(400, 0.5)
    for _ in range(5):
        rates = rng.uniform(0.1, 0.9, 400)
        true = rng.beta(pseudo_count * rates, pseudo_count * (1 - rates))
        concentration.learn(evidence, rates, rng.binomial(8, true), np.full(400, 8))
    grid = Concentration.GRID.tolist()
    found = grid.index(concentration.pseudo_count(np.array([0.5]))[0])
    assert abs(found - grid.index(pseudo_count)) <= 1
    assert concentration.pseudo_count(np.array([0.0]))[0] == 4.5  # a level without outcomes has the prior's mode
