from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.rollouts import deal, equal_prompt_weights, jobs

counts = st.lists(st.sampled_from([0, *range(2, 30)]), max_size=20).map(lambda found: np.array(found, dtype=np.int64))
workers = st.integers(1, 12)


def test_jobs_are_listed_group_after_group() -> None:
    assert jobs(np.array([2, 0, 3])).tolist() == [0, 0, 2, 2, 2]


def test_equal_prompt_weights_make_every_prompt_weigh_the_mean_count() -> None:
    counts_P = np.array([2, 0, 6, 4])
    assert (equal_prompt_weights(counts_P) * counts_P).tolist() == pytest.approx([4, 0, 4, 4])
    assert equal_prompt_weights(np.array([7, 7, 7])).tolist() == [1.0] * 3
    assert equal_prompt_weights(np.array([0, 0])).tolist() == [0.0, 0.0]


@given(counts, workers, st.integers(0, 5), st.data())
def test_every_job_is_dealt_once_and_the_work_is_even(
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
def test_equal_work_is_dealt_to_within_one_job(counts_P: np.ndarray, workers: int, seed: int) -> None:
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
def test_prompts_are_read_no_more_often_than_they_must(counts_P: np.ndarray, workers: int, seed: int) -> None:
    dealt = deal(counts_P, workers, seed=seed)
    groups = int((counts_P > 0).sum())
    mean = counts_P.sum() / max(groups, 1)
    pieces = int(np.ceil(counts_P / max(2 * mean, 1)).sum())
    assert pieces <= 1.5 * groups
    assert sum(len(set(prompts.tolist())) for prompts in dealt) <= pieces + workers - 1
    for prompts in dealt:  # and each in one go
        for prompt in set(prompts.tolist()):
            at = np.flatnonzero(prompts == prompt)
            assert at[-1] - at[0] + 1 == at.size


@given(counts, workers, st.integers(0, 5), st.data())
def test_long_jobs_come_first(counts_P: np.ndarray, workers: int, seed: int, data: st.DataObject) -> None:
    work_P = np.array(data.draw(st.lists(st.floats(0.1, 100), min_size=counts_P.size, max_size=counts_P.size)))
    for prompts in deal(counts_P, workers, work_P, seed):
        assert (np.diff(work_P[prompts]) <= 0).all()


def test_workers_get_long_and_short_jobs_alike() -> None:
    work_P = np.repeat([1.0, 10.0, 100.0], 64)
    for prompts in deal(np.full(192, 4), 16, work_P):
        kinds = [int((work_P[prompts] == kind).sum()) for kind in (1.0, 10.0, 100.0)]
        assert max(abs(kind - 16) for kind in kinds) <= 4, kinds


def test_a_large_group_is_not_one_workers_alone() -> None:
    dealt = deal(np.array([64, *[2] * 32]), 4)
    assert max(int((prompts == 0).sum()) for prompts in dealt) < 32


@given(counts, workers, st.integers(0, 5))
def test_the_deal_is_a_pure_function_of_its_arguments(counts_P: np.ndarray, workers: int, seed: int) -> None:
    before = counts_P.copy()
    np.random.seed(1)  # noqa: NPY002  global state must not matter
    first = deal(counts_P, workers, seed=seed)
    np.random.seed(2)  # noqa: NPY002
    for one, other in zip(first, deal(counts_P, workers, seed=seed), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(counts_P, before)


def test_another_seed_is_another_deal() -> None:
    counts_P = np.full(50, 4)
    deals = {tuple(np.concatenate(deal(counts_P, 4, seed=seed)).tolist()) for seed in range(5)}
    assert len(deals) == 5


def test_nothing_to_deal() -> None:
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
