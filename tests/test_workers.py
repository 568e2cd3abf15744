"""Speeds are learned: by what was seen, with the benefit of the doubt, and never below the truth for long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.workers import WorkerSpeeds


def test_nothing_known_is_all_alike() -> None:
    np.testing.assert_array_equal(WorkerSpeeds(3).optimistic(), np.ones(3))


def test_speeds_are_found_and_the_doubt_shrinks() -> None:
    truth = np.array([1.0, 2.0, 8.0])
    speeds, random, doubts = WorkerSpeeds(3, half_life=1e9), np.random.default_rng(0), []
    for _ in range(300):
        speeds.observe(np.full(3, 10.0), 10 / truth * random.lognormal(-0.005, 0.1, 3))
        doubts.append(float((speeds.optimistic() / truth).max()))
    assert doubts[2] > doubts[30] > doubts[-1]
    np.testing.assert_allclose(speeds.optimistic(), truth, rtol=0.05)


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.0, 0.5))
def test_a_worker_is_rarely_thought_slower_than_it_is(seed: int, steps: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    truth = random.uniform(1, 10, 20)
    speeds = WorkerSpeeds(20, half_life=1e9)
    for _ in range(steps):
        speeds.observe(np.full(20, 5.0), 5 / truth * random.lognormal(-(noise**2) / 2, noise, 20))
    assert (speeds.optimistic() >= truth * 0.97).mean() >= 0.7


def test_one_that_had_no_work_is_tried_again() -> None:
    speeds = WorkerSpeeds(2, half_life=8)
    random = np.random.default_rng(0)
    for _ in range(4):
        speeds.observe(np.array([10.0, 10.0]), np.array([1.0, 20.0]) * random.lognormal(0, 0.2, 2))
    slow = speeds.optimistic()[1]
    for _ in range(40):
        speeds.observe(np.array([10.0, 0.0]), np.array([1.0, 0.0]) * random.lognormal(0, 0.2, 2))
    assert speeds.optimistic()[1] > 2 * slow


def test_one_never_seen_counts_as_the_fastest() -> None:
    speeds = WorkerSpeeds(3)
    speeds.observe(np.array([10.0, 10.0, 0.0]), np.array([1.0, 5.0, 0.0]))
    found = speeds.optimistic()
    assert found[2] == pytest.approx(10.0)
    assert found[2] > found[1]


def test_changes_are_followed() -> None:
    speeds = WorkerSpeeds(2, half_life=4)
    for seconds in [(1.0, 4.0)] * 50 + [(4.0, 1.0)] * 50:
        speeds.observe(np.array([4.0, 4.0]), np.array(seconds))
    found = speeds.optimistic()
    assert found[1] > 3 * found[0]


@pytest.mark.parametrize(
    ("work", "seconds", "message"),
    [
        ([1.0], [1.0, 1.0], "2 workers, but work"),
        ([1.0, -1.0], [1.0, 1.0], "must be finite and not negative"),
        ([1.0, np.nan], [1.0, 1.0], "must be finite and not negative"),
        ([1.0, 1.0], [1.0, 0.0], "must have taken time"),
    ],
)
def test_nonsense_is_refused(work: list[float], seconds: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerSpeeds(2).observe(np.array(work), np.array(seconds))
    with pytest.raises(ValueError, match="0 workers"):
        WorkerSpeeds(0)
