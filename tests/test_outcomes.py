from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from knapsack_rl.outcomes import Outcomes
from strategies import outcome_streams

NAN = math.nan


@given(outcome_streams(answers=(0.0, 0.5, 1.0, 1 - 1e-7, NAN)))
def test_every_count_agrees_with_a_plain_loop(stream: list[Outcomes]) -> None:
    for outcomes in stream:
        ends = np.cumsum(outcomes.counts_P)
        groups = [outcomes.rewards_PG[end - count : end] for count, end in zip(outcomes.counts_P, ends, strict=True)]
        for i, group in enumerate(groups):
            answers = [reward for reward in group if not math.isnan(reward)]
            successes = sum(reward > 0.99 for reward in answers)
            assert outcomes.attempts_P[i] == len(answers)
            assert outcomes.successes_P[i] == successes
            assert outcomes.mixed_P[i] == (len(set(answers)) > 1)
            np.testing.assert_equal(outcomes.pass_rates_P[i], successes / len(answers) if answers else NAN)


def test_rows_are_assigned_to_groups() -> None:
    outcomes = Outcomes.of_groups(3, [("a", [1, 0]), ("b", []), ("a", [NAN, 1, 1])])
    assert outcomes.prompt_ids == ("a", "b", "a")
    assert outcomes.group_PG.tolist() == [0, 0, 2, 2, 2]
    assert outcomes.answered_PG.tolist() == [True, True, False, True, True]
    assert outcomes.success_PG.tolist() == [True, False, False, True, True]
    assert outcomes.mixed_P.tolist() == [True, False, False]


def test_graded_rewards_succeed_from_the_threshold_on() -> None:
    rewards = np.array([0.7, 0.3], dtype=np.float32).sum()  # 1.0 less rounding must count
    outcomes = Outcomes.of_groups(0, [("a", [float(rewards), 0.999, 1.4])])
    assert outcomes.successes_P.tolist() == [2]
    assert Outcomes.of_groups(0, [("a", [0.5, 0.4, 0.6])], success_threshold=0.5).successes_P.tolist() == [2]
    assert Outcomes.of_groups(0, [("a", [-1, 0, 1])], success_threshold=0.0).successes_P.tolist() == [2]


def test_rewards_that_differ_without_a_success_still_have_a_gradient() -> None:
    outcomes = Outcomes.of_groups(0, [("a", [0.1, 0.2]), ("b", [0.1, 0.1])])
    assert outcomes.mixed_P.tolist() == [True, False]
    assert outcomes.successes_P.tolist() == [0, 0]


def test_mean_tokens() -> None:
    unknown = Outcomes.of_groups(0, [("a", [1.0])])
    assert math.isnan(unknown.mean_tokens_P[0])
    known = Outcomes(0, ("a", "b"), np.array([2, 0]), np.zeros(2), tokens_PG=np.array([10, 20]))
    np.testing.assert_array_equal(known.mean_tokens_P, [15, NAN])


def test_no_outcomes() -> None:
    nothing = Outcomes.of_groups(0, [])
    assert nothing.attempts_P.size == nothing.mixed_P.size == nothing.mean_tokens_P.size == 0


@pytest.mark.parametrize(
    ("counts", "rewards", "tokens", "message"),
    [
        ([2], [1.0, 0.0], None, "outcomes of 2 prompts need as many counts"),
        ([3, -1], [1.0, 0.0], None, "none negative"),
        ([1, 2], [1.0, 0.0], None, r"3 rollouts came with rewards of shape \(2,\)"),
        ([1, 1], [1.0, 0.0], [5], r"2 rollouts came with token counts of shape \(1,\)"),
        ([1, 1], [1.0, math.inf], None, "prompt 'b' got the reward inf: rewards must be finite"),
        ([1, 1], [-math.inf, 1.0], None, "prompt 'a' got the reward -inf"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(
    counts: list[int], rewards: list[float], tokens: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Outcomes(0, ("a", "b"), np.array(counts), np.array(rewards), np.array(tokens) if tokens is not None else None)
