"""E3's rank rule: linear in the rank of difficulty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.e3 import e3_rule, ranks
from knapsack_rl import Outcomes
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.window import WindowBeliefs


def planned(
    rates: list[float], budget: int, low: int = 2, high: int = 128, seen: list[bool] | None = None
) -> list[int]:
    size = len(rates)
    known = np.array([True] * size if seen is None else seen)
    problem = e3_rule(Forecast(np.array(rates), np.full(size, 16.0), known, np.full(size, np.nan)), budget, low, high)
    assert problem.low_P.tolist() == problem.high_P.tolist()
    return problem.low_P.tolist()


def test_the_hardest_gets_most_linearly_in_its_rank_whatever_the_distance() -> None:
    # n_min = 2, C - B n_min = 20, ranks 1..4 of 10
    assert planned([0.9, 0.5, 0.1, 0.0], 28) == [4, 6, 8, 10]
    assert planned([0.13, 0.12, 0.11, 0.10], 28) == [4, 6, 8, 10]
    assert planned([0.0, 0.9, 0.1, 0.5], 28) == [10, 4, 8, 6]


def test_the_larger_the_least_the_flatter() -> None:
    assert planned([0.9, 0.5, 0.1], 24, low=6) == [7, 8, 9]


def test_the_most_holds_and_the_others_share_by_rank_what_it_leaves() -> None:
    # extra 9: 1.5, 3, 4.5; the last may have 4, so 5 go 1 : 2 to the others, 1.67 and 3.33
    assert planned([0.9, 0.5, 0.1], 15, high=6) == [4, 5, 6]


def test_equal_rates_share_the_mean_of_their_ranks() -> None:
    np.testing.assert_array_equal(ranks(np.array([0.5, 0.5, 0.9, 0.0, 0.0, 0.0])), [2.5, 2.5, 1, 5, 5, 5])
    assert planned([0.5, 0.5, 0.9], 16) == [6, 6, 4]  # ranks 2.5, 2.5, 1 of 6, and 10 extra: 4.17, 4.17, 1.67


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_equal_prompts_get_equal_counts(rate: float) -> None:
    assert planned([rate] * 4, 32) == [8] * 4


def test_unseen_prompts_get_the_least_and_equal_counts_among_them() -> None:
    assert planned([0.5] * 3, 24, seen=[False] * 3) == [8, 8, 8]
    assert planned([0.9, 0.5, 0.1], 18, seen=[True, False, True]) == [6, 2, 10]


def test_a_resume_changes_nothing(tmp_path: Path) -> None:
    kept, resumed = (KnapsackAllocator(WindowBeliefs(min_rewards=1), e3_rule) for _ in range(2))
    kept.observe(Outcomes.of_groups(0, [("a", [1.0, 1.0]), ("b", [1.0, 0.0]), ("c", [0.0, 0.0])]))
    kept.save(tmp_path / "saved")
    resumed.load(tmp_path / "saved")
    for each in (kept, resumed):
        assert each.plan(["a", "b", "c"], 18, 1).counts_P.tolist() == [4, 6, 8]


def test_what_the_limits_cannot_meet_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        planned([0.5, 0.1], 3)
    with pytest.raises(ValueError, match="budget"):
        planned([0.5, 0.1], 33, high=16)
