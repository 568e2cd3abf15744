"""DAPO's dynamic sampling, rollout by rollout."""

from __future__ import annotations

import pytest

from knapsack_arena.published.dapo import DynamicSampling
from scripted import Script, asked, trained

DEAD, SOLVED, MIXED = "0000", "1111", "1000"


def test_whole_batches_are_drawn_until_enough_groups_are_mixed() -> None:
    world = Script({"a": DEAD, "b": MIXED, "c": SOLVED, "d": MIXED, "e": MIXED, "f": DEAD})
    result = world.run_step(DynamicSampling(), groups=2, budget=8)
    assert asked(result) == [{"a": 4, "b": 4}, {"c": 4, "d": 4}]
    assert trained(result) == {"b": [1, 0, 0, 0], "d": [1, 0, 0, 0]}
    assert (result.rollouts, len(result.rounds)) == (16, 2)
    assert result.batch.baseline_P is None  # the group's own


def test_the_surplus_is_discarded_in_order_of_arrival() -> None:
    world = Script(dict.fromkeys("abcdef", MIXED))
    result = world.run_step(DynamicSampling(oversampling=3), groups=2, budget=8)
    assert asked(result) == [dict.fromkeys("abcdef", 4)]
    assert list(trained(result)) == ["a", "b"]


def test_at_the_limit_it_trains_on_what_it_has() -> None:
    world = Script({**dict.fromkeys("abcde", DEAD), "f": MIXED, **dict.fromkeys("ghij", DEAD)})
    result = world.run_step(DynamicSampling(max_batches=4), groups=2, budget=8)
    assert len(result.rounds) == 4
    assert list(trained(result)) == ["f"]


def test_without_a_mixed_group_it_trains_on_the_last_round() -> None:
    world = Script(dict.fromkeys("abcdef", SOLVED))
    result = world.run_step(DynamicSampling(max_batches=2), groups=2, budget=8)
    assert list(trained(result)) == ["c", "d"]
    assert not result.batch.outcomes.mixed_P.any()


def test_a_prompt_is_drawn_once_a_step_and_a_small_data_set_ends_it() -> None:
    world = Script(dict.fromkeys("abc", DEAD))
    result = world.run_step(DynamicSampling(), groups=2, budget=8)
    assert asked(result) == [{"a": 4, "b": 4}, {"c": 4}]


def test_groups_that_come_back_short_are_not_mixed() -> None:
    world = Script({"a": "1???", "b": MIXED, "c": "????", "d": MIXED}, short=["d"])
    result = world.run_step(DynamicSampling(), groups=2, budget=8)
    assert list(trained(result)) == ["b"]


def test_it_refuses_groups_of_one_and_limits_of_none() -> None:
    with pytest.raises(ValueError, match="groups of one"):
        Script(dict.fromkeys("ab", MIXED)).run_step(DynamicSampling(), groups=2, budget=3)
    with pytest.raises(ValueError, match="max_batches is 0"):
        DynamicSampling(max_batches=0)
    with pytest.raises(ValueError, match="oversampling is 0"):
        DynamicSampling(oversampling=0)
