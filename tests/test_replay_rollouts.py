"""Draws without replacement: no rollout twice, the same for every rule, and whole groups as they were recorded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.replay.rollouts import WithoutReplacementSampler, shuffled_rollouts
from knapsack_rl.outcomes import Outcomes

TWO = np.arange(2)


def recorded(*sizes: int, step: int = 3) -> Outcomes:
    """Rewards that tell every rollout from every other."""
    counts = np.array(sizes)
    rewards = np.arange(counts.sum(), dtype=np.float64)
    ids = tuple(f"q{i}" for i in range(len(sizes)))
    return Outcomes(step, ids, counts, rewards, np.arange(counts.sum()) + 100, success_threshold=0.5)


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), max_size=4),
    st.integers(0, 9),
)
def test_no_rollout_is_drawn_twice_and_all_are_recorded(sizes: list[int], draws: list[list[int]], seed: int) -> None:
    outcomes = recorded(*sizes)
    sampler = WithoutReplacementSampler(shuffled_rollouts(outcomes, seed))
    prompts, drawn = np.arange(len(sizes)), []
    for counts in draws:
        asked = np.array(counts[: len(sizes)])
        left = sampler.left_P.copy()
        got = sampler.draw(3, prompts, asked)
        np.testing.assert_array_equal(got.counts_P, np.minimum(asked, left))
        np.testing.assert_array_equal(got.tokens_PG, got.rewards_PG + 100)
        for reward, group in zip(got.rewards_PG, got.group_PG, strict=True):
            assert outcomes.group_PG[int(reward)] == group  # each prompt gets its own
        drawn += got.rewards_PG.tolist()
    rest = sampler.remaining(3, prompts).rewards_PG.tolist()
    assert sorted(drawn + rest) == outcomes.rewards_PG.tolist()


def test_a_whole_group_comes_out_as_it_went_in() -> None:
    outcomes = recorded(5, 3)
    got = WithoutReplacementSampler(shuffled_rollouts(outcomes, 7)).draw(3, TWO, np.array([9, 3]))
    np.testing.assert_array_equal(got.rewards_PG, outcomes.rewards_PG)
    np.testing.assert_array_equal(got.counts_P, [5, 3])


def test_prompts_may_be_drawn_in_any_order() -> None:
    got = WithoutReplacementSampler(shuffled_rollouts(recorded(2, 3), 0)).draw(3, np.array([1, 0]), np.array([3, 2]))
    assert got.prompt_ids == ("q1", "q0")
    assert got.rewards_PG.tolist() == [2, 3, 4, 0, 1]


def test_two_rules_that_draw_alike_get_alike_and_more_contains_less() -> None:
    rollouts = shuffled_rollouts(recorded(6, 6), seed=1)
    two, five = (WithoutReplacementSampler(rollouts).draw(3, TWO, np.full(2, n)) for n in (2, 5))
    assert set(two.rewards_PG) < set(five.rewards_PG)
    again = WithoutReplacementSampler(shuffled_rollouts(recorded(6, 6), seed=1)).draw(3, TWO, np.full(2, 2))
    np.testing.assert_array_equal(two.rewards_PG, again.rewards_PG)


def test_seeds_and_steps_shuffle_anew_and_every_pair_is_as_likely() -> None:
    draws = Counter(
        tuple(
            WithoutReplacementSampler(shuffled_rollouts(recorded(4, step=step), seed))
            .draw(step, np.arange(1), np.array([2]))
            .rewards_PG
        )
        for seed in range(60)
        for step in range(10)
    )
    assert len(draws) == 6
    # 600 draws, 100 expected of each pair: 4 standard deviations are 37.
    assert all(abs(count - 100) < 37 for count in draws.values())


def test_a_prompt_listed_twice_becomes_one() -> None:
    outcomes = Outcomes.of_groups(0, [("a", [1.0, 2.0]), ("b", [3.0]), ("a", [4.0])])
    rollouts = shuffled_rollouts(outcomes, 0)
    assert tuple(rollouts.prompt_ids) == ("a", "b")
    everything = WithoutReplacementSampler(rollouts).remaining(0, TWO)
    assert everything.rewards_PG.tolist() == [1, 2, 4, 3]
    assert everything.counts_P.tolist() == [3, 1]


def test_unknown_prompts_have_no_row() -> None:
    assert shuffled_rollouts(recorded(1, 1), 0).rows(["q1", "x", "q0"]).tolist() == [1, -1, 0]


@pytest.mark.parametrize("counts", [[0, 0], [0, 2]])
def test_an_empty_draw_is_an_empty_group(counts: list[int]) -> None:
    got = WithoutReplacementSampler(shuffled_rollouts(recorded(2, 2), 0)).draw(3, TWO, np.array(counts))
    assert got.counts_P.tolist() == counts
