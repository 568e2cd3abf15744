from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.advantages import prompt_weights
from knapsack_rl.plan import jobs
from knapsack_rl.rollouts import WorkerSpeeds, deal

counts = st.lists(st.sampled_from([0, *range(2, 30)]), max_size=20).map(lambda found: np.array(found, dtype=np.int64))
workers = st.integers(1, 12)


def test_jobs_are_listed_group_after_group() -> None:
    assert jobs(np.array([2, 0, 3])).tolist() == [0, 0, 2, 2, 2]


def test_equal_prompt_weights_make_every_prompt_weigh_the_mean_count() -> None:
    counts_P = np.array([2, 0, 6, 4])
    assert (prompt_weights(counts_P) * counts_P).tolist() == pytest.approx([4, 0, 4, 4])
    assert prompt_weights(np.array([7, 7, 7])).tolist() == [1.0] * 3
    assert prompt_weights(np.array([0, 0])).tolist() == [0.0, 0.0]


@given(counts, workers, st.integers(0, 5), st.data())
def test_every_job_is_assigned_once_and_the_work_is_even(
    counts_P: np.ndarray, workers: int, seed: int, data: st.DataObject
) -> None:
    work_P = np.array(data.draw(st.lists(st.floats(0.1, 100), min_size=counts_P.size, max_size=counts_P.size)))
    dealt = deal(counts_P, workers, work_P, seed)
    assert len(dealt) == workers
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), jobs(counts_P))
    loads = np.array([work_P[prompts].sum() for prompts in dealt])
    largest = work_P[counts_P > 0].max(initial=0.0)
    assert (np.abs(loads - loads.sum() / workers) <= largest * (1 + 1e-9)).all()


@given(counts, workers, st.integers(0, 5))
def test_equal_work_is_divided_to_within_one_job(counts_P: np.ndarray, workers: int, seed: int) -> None:
    sizes = [len(prompts) for prompts in deal(counts_P, workers, seed=seed)]
    assert max(sizes) - min(sizes) <= 1


@given(counts, workers, st.integers(0, 5), st.data())
def test_the_shares_follow_the_speeds(counts_P: np.ndarray, workers: int, seed: int, data: st.DataObject) -> None:
    speeds_W = np.array(data.draw(st.lists(st.floats(0.1, 10), min_size=workers, max_size=workers)))
    work_P = np.array(data.draw(st.lists(st.floats(0.1, 100), min_size=counts_P.size, max_size=counts_P.size)))
    dealt = deal(counts_P, workers, work_P, seed, speeds_W)
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), jobs(counts_P))
    loads = np.array([work_P[prompts].sum() for prompts in dealt])
    largest = work_P[counts_P > 0].max(initial=0.0)
    assert (np.abs(loads - loads.sum() * speeds_W / speeds_W.sum()) <= largest * (1 + 1e-9)).all()


@given(counts, workers, st.integers(0, 5))
def test_the_number_of_prefills_is_bounded(counts_P: np.ndarray, workers: int, seed: int) -> None:
    dealt = deal(counts_P, workers, seed=seed)
    groups = int((counts_P > 0).sum())
    mean = counts_P.sum() / max(groups, 1)
    chunks = int(np.ceil(counts_P / max(2 * mean, 1)).sum())
    assert chunks <= 1.5 * groups
    assert sum(len(set(prompts.tolist())) for prompts in dealt) <= chunks + workers - 1
    for prompts in dealt:  # the jobs of a prompt are consecutive
        for prompt in set(prompts.tolist()):
            at = np.flatnonzero(prompts == prompt)
            assert at[-1] - at[0] + 1 == at.size


@given(counts, workers, st.integers(0, 5), st.data())
def test_long_jobs_come_first(counts_P: np.ndarray, workers: int, seed: int, data: st.DataObject) -> None:
    work_P = np.array(data.draw(st.lists(st.floats(0.1, 100), min_size=counts_P.size, max_size=counts_P.size)))
    for prompts in deal(counts_P, workers, work_P, seed):
        assert (np.diff(work_P[prompts]) <= 0).all()


def test_workers_get_equal_numbers_of_long_and_short_jobs() -> None:
    work_P = np.repeat([1.0, 10.0, 100.0], 64)
    for prompts in deal(np.full(192, 4), 16, work_P):
        kinds = [int((work_P[prompts] == kind).sum()) for kind in (1.0, 10.0, 100.0)]
        assert max(abs(kind - 16) for kind in kinds) <= 4, kinds


def test_a_large_group_is_divided_among_workers() -> None:
    dealt = deal(np.array([64, *[2] * 32]), 4)
    assert max(int((prompts == 0).sum()) for prompts in dealt) < 32


@given(counts, workers, st.integers(0, 5))
def test_deal_is_a_pure_function_of_its_arguments(counts_P: np.ndarray, workers: int, seed: int) -> None:
    before = counts_P.copy()
    np.random.seed(1)  # noqa: NPY002  global state must not matter
    first = deal(counts_P, workers, seed=seed)
    np.random.seed(2)  # noqa: NPY002
    for one, other in zip(first, deal(counts_P, workers, seed=seed), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(counts_P, before)


def test_different_seeds_give_different_assignments() -> None:
    counts_P = np.full(50, 4)
    deals = {tuple(np.concatenate(deal(counts_P, 4, seed=seed)).tolist()) for seed in range(5)}
    assert len(deals) == 5


def test_no_jobs() -> None:
    assert [part.size for part in deal(np.zeros(3, dtype=np.int64), 2)] == [0, 0]


def test_bad_workers_and_work_are_refused() -> None:
    with pytest.raises(ValueError, match="to 0 workers"):
        deal(np.array([2]), 0)
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"prompt 1 is expected to take {wrong} of work"):
            deal(np.array([2, 2]), 2, np.array([1.0, wrong]))
        with pytest.raises(ValueError, match=f"worker 1 has a speed of {wrong}"):
            deal(np.array([2, 2]), 2, speeds_W=np.array([1.0, wrong]))
    with pytest.raises(ValueError, match="2 workers were given speeds of shape"):
        deal(np.array([2, 2]), 2, speeds_W=np.ones(3))


# WorkerSpeeds.


def test_speeds_are_equal_without_observations() -> None:
    np.testing.assert_array_equal(WorkerSpeeds(3).optimistic(), np.ones(3))


def test_bounds_converge_to_the_speeds() -> None:
    truth = np.array([1.0, 2.0, 8.0])
    speeds, random, ratios = WorkerSpeeds(3, half_life=1e9), np.random.default_rng(0), []
    for _ in range(300):
        speeds.observe(np.full(3, 10.0), 10 / truth * random.lognormal(-0.005, 0.1, 3))
        ratios.append(float((speeds.optimistic() / truth).max()))
    assert ratios[2] > ratios[30] > ratios[-1]
    np.testing.assert_allclose(speeds.optimistic(), truth, rtol=0.05)


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.0, 0.5))
def test_bounds_are_rarely_below_the_speeds(seed: int, steps: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    truth = random.uniform(1, 10, 20)
    speeds = WorkerSpeeds(20, half_life=1e9)
    for _ in range(steps):
        speeds.observe(np.full(20, 5.0), 5 / truth * random.lognormal(-(noise**2) / 2, noise, 20))
    assert (speeds.optimistic() >= truth * 0.97).mean() >= 0.7


def test_the_bound_of_a_worker_without_work_rises() -> None:
    speeds = WorkerSpeeds(2, half_life=8)
    random = np.random.default_rng(0)
    for _ in range(4):
        speeds.observe(np.array([10.0, 10.0]), np.array([1.0, 20.0]) * random.lognormal(0, 0.2, 2))
    slow = speeds.optimistic()[1]
    for _ in range(40):
        speeds.observe(np.array([10.0, 0.0]), np.array([1.0, 0.0]) * random.lognormal(0, 0.2, 2))
    assert speeds.optimistic()[1] > 2 * slow


def test_a_worker_without_observations_counts_as_the_fastest() -> None:
    speeds = WorkerSpeeds(3)
    speeds.observe(np.array([10.0, 10.0, 0.0]), np.array([1.0, 5.0, 0.0]))
    found = speeds.optimistic()
    assert found[2] == pytest.approx(10.0)
    assert found[2] > found[1]


def test_changes_of_speed_are_followed() -> None:
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
        ([1.0, 1.0], [1.0, 0.0], "time in seconds positive"),
    ],
)
def test_impossible_work_and_times_are_refused(work: list[float], seconds: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerSpeeds(2).observe(np.array(work), np.array(seconds))
    with pytest.raises(ValueError, match="0 workers"):
        WorkerSpeeds(0)
