from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from knapsack_rl.notation import PromptFeatures
from knapsack_rl.plan import Plan


def fields(counts: list[int], **changes: Any) -> dict[str, Any]:
    size = len(counts)
    return {
        "step": 0,
        "prompt_ids": tuple("abcdef"[:size]),
        "counts_P": np.array(counts),
        "budget": sum(counts),
        "low_P": np.zeros(size, dtype=np.int64),
        "high_P": np.full(size, 8),
        "success_rates_P": np.full(size, 0.5),
        "pseudo_count_P": np.ones(size),
        "seen_P": np.ones(size, dtype=bool),
    } | changes


def test_a_plan_is_frozen() -> None:
    plan = Plan(**fields([2, 0, 8]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.budget = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        plan.counts_P[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        plan.low_P[0] = 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (fields([2, 4], budget=7), "the counts sum to 6, not to the budget of 7"),
        (fields([2, 1]), r"prompt 'b' was planned 1 rollouts \(limits 0..8\): a group of one has no gradient"),
        (fields([2, 9]), r"prompt 'b' was planned 9 rollouts \(limits 0..8\): the count lies outside"),
        (fields([2, 4], low_P=np.array([3, 0])), r"prompt 'a' was planned 2 rollouts \(limits 3..8\)"),
        (fields([2, -2], budget=0), r"prompt 'b' was planned -2 rollouts"),
        (fields([2, 4], seen_P=np.ones(3, dtype=bool)), r"a plan for 2 prompts was given seen_P of shape \(3,\)"),
    ],
)
def test_a_plan_that_breaks_its_word_cannot_be_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**wrong)


def test_an_id_may_occur_twice() -> None:
    assert Plan(**fields([2, 4], prompt_ids=("a", "a"))).counts_P.tolist() == [2, 4]


def test_a_plan_can_be_iterated_and_lists_its_rollouts() -> None:
    plan = Plan(**fields([2, 0, 6]))
    assert list(plan) == [("a", 2), ("c", 6)]
    assert np.bincount(plan.group_PG, minlength=len(plan.prompt_ids)).tolist() == plan.counts_P.tolist()


def test_the_callers_arrays_stay_writeable() -> None:
    given = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in fields([2, 6]).items()}
    plan = Plan(**given)
    given["success_rates_P"][0] = 0.25
    assert plan.success_rates_P[0] != 0.25
    with pytest.raises(ValueError, match="read-only"):
        plan.counts_P[0] = 4


def test_a_plan_as_arrays_and_numbers_and_back() -> None:
    plan = Plan(**fields([2, 6]), features=PromptFeatures(np.ones((2, 3)), np.zeros((2, 0))))
    again = Plan.from_state(plan.state_dict())
    assert again.prompt_ids == plan.prompt_ids
    assert again.features is not None and again.features.features_P_F.tolist() == [[1.0] * 3] * 2
    for name in ("counts_P", "low_P", "high_P", "success_rates_P", "pseudo_count_P", "seen_P"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plan, name))
