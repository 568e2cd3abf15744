"""Formulas of related papers: whole tasks for workers (ATA), and rates by normalised maximum likelihood (MURAL)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.beliefs.online_logistic import OnlineLogistic, logistic, normalised_maximum_likelihood
from knapsack_rl.notation import FloatArray
from knapsack_rl.rollouts import WorkerSpeeds, deal_tasks


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=5), st.integers(0, 12))
def test_whole_tasks_end_as_early_as_by_brute_force(seconds: list[float], tasks: int) -> None:
    best = min(
        max(n * s for n, s in zip(counts, seconds, strict=True))
        for counts in itertools.product(range(tasks + 1), repeat=len(seconds))
        if sum(counts) == tasks
    )
    counts = deal_tasks(tasks, np.array(seconds))
    assert counts.sum() == tasks and (counts >= 0).all()
    assert (counts * seconds).max() == pytest.approx(best)


@given(st.integers(1, 400), st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_no_task_could_move_and_end_earlier(tasks: int, seconds: list[float]) -> None:
    counts, each = deal_tasks(tasks, np.array(seconds)), np.array(seconds)
    assert counts.sum() == tasks
    assert (counts * each).max() <= ((counts + 1) * each).min() * (1 + 1e-9) or (counts * each).max() == each.min()


def test_learned_speeds_cost_at_most_the_papers_factor() -> None:
    """Exponential workers with means 1..n: total time over that of known means stays below 1 + 4 ln B."""
    workers, budget, rounds = 6, 24, 400
    random, means = np.random.default_rng(0), np.arange(1.0, 7.0)
    speeds = WorkerSpeeds(workers, half_life=1e9)
    learned = known = 0.0
    late = 0.0
    for step in range(rounds):
        counts = deal_tasks(budget, 1 / speeds.optimistic())
        times = np.array([random.exponential(mean, count).sum() for mean, count in zip(means, counts, strict=True)])
        speeds.observe(counts.astype(float), np.where(counts > 0, np.maximum(times, 1e-9), 1.0))
        learned += float((counts * means).max())
        best = float((deal_tasks(budget, means) * means).max())
        known += best
        late += float((counts * means).max()) / best if step >= rounds // 2 else 0.0
    assert learned / known < 1 + 4 * np.log(budget)
    assert late / (rounds // 2) < 1.25  # and it learns: the second half is near the optimum


@pytest.mark.parametrize("wrong", [(1, []), (-1, [1.0]), (1, [-1.0]), (1, [float("nan")])])
def test_tasks_and_seconds_out_of_range_are_refused(wrong: tuple[int, list[float]]) -> None:
    with pytest.raises(ValueError, match="both must be 0 or more"):
        deal_tasks(wrong[0], np.array(wrong[1]))


def _refitted(inputs: FloatArray, labels: FloatArray, ridge: float, prompt: FloatArray, label: float) -> float:
    """Probability of ``label`` for the prompt after a fit in which it has that label."""
    x, y = np.vstack([inputs, prompt]), np.append(labels, label)
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = logistic(x @ weights)
        gradient = x.T @ (y - p) - ridge * weights
        weights += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1]), gradient)
    p = float(logistic(prompt @ weights)[0])
    return p if label else 1 - p


def test_it_is_that_of_two_refits() -> None:
    random, errors = np.random.default_rng(0), []
    for _ in range(30):
        inputs = random.normal(size=(120, 4))
        labels = (random.random(120) < logistic(inputs @ random.normal(size=4))).astype(float)
        fit = OnlineLogistic(np.zeros(4), np.full(4, 1.0), 1.0)
        fit.learn(inputs, labels, np.ones(120))
        prompt = random.normal(size=(1, 4))
        found = float(normalised_maximum_likelihood(fit.logits(prompt), fit.leverage(prompt))[0])
        success = _refitted(inputs, labels, 1.0, prompt, 1.0)
        failure = _refitted(inputs, labels, 1.0, prompt, 0.0)
        errors.append(abs(found - success / (success + failure)))
    assert max(errors) < 1e-2


@pytest.mark.parametrize("attempts", [4, 8, 16, 32])
def test_one_hot_inputs_give_laplaces_rule(attempts: int) -> None:
    for successes in range(1, attempts):
        z = np.array([np.log(successes / (attempts - successes))])
        rate = successes / attempts
        leverage = np.array([1 / (attempts * rate * (1 - rate))])
        found = float(normalised_maximum_likelihood(z, leverage)[0])
        assert found == pytest.approx((successes + 1) / (attempts + 2), abs=0.0251)


@given(st.floats(-6, 6))
def test_what_is_known_stays_and_what_is_unknown_is_even(z: float) -> None:
    known = normalised_maximum_likelihood(np.array([z]), np.array([0.0]))
    assert known[0] == pytest.approx(float(logistic(np.array([z]))[0]))
    unknown = normalised_maximum_likelihood(np.array([z]), np.array([1e9]))
    assert abs(unknown[0] - 0.5) < 0.27  # one Newton step from z ends at z + 1/p or z - 1/q
