"""sGPO: as many rollouts as one success takes on average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.sgpo import sgpo_rule
from knapsack_rl import Outcomes
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.window import WindowBeliefs


def planned(rates: list[float], budget: int, low: int = 2, high: int = 128) -> list[int]:
    size = len(rates)
    forecast = Forecast(np.array(rates), np.full(size, 16.0), np.full(size, True), np.full(size, np.nan))
    problem = sgpo_rule(forecast, budget, low, high)
    assert problem.low_P.tolist() == problem.high_P.tolist()
    return problem.low_P.tolist()


def test_a_budget_that_fits_gives_every_prompt_one_expected_success() -> None:
    rates = [1 / 4, 1 / 8, 1 / 2, 1 / 16]
    assert planned(rates, 30) == [4, 8, 2, 16]  # n p = 1 for all


def test_the_least_count_is_paid_by_the_others() -> None:
    # 1/p = 1, 2, 4: of 28, four parts of seven are 16; at 14 the solved one is lifted from 2 to 4
    assert planned([1.0, 0.5, 0.25], 28) == [4, 8, 16]
    assert planned([1.0, 0.5, 0.25], 28, low=7) == [7, 7, 14]


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.5])
def test_equal_prompts_get_equal_counts(rate: float) -> None:
    assert planned([rate] * 4, 32) == [8] * 4
    assert planned([rate] * 4, 30) == [8, 8, 7, 7]  # what does not divide goes to the first


def test_never_solved_counts_as_one_success_in_the_most() -> None:
    # 1/p = 16 for both: p = 0 is taken for 1/16 where 16 is the most
    assert planned([0.0, 1 / 16, 1.0], 22, high=16) == [10, 10, 2]


def test_unseen_prompts_count_as_a_half_and_a_resume_changes_nothing(tmp_path: Path) -> None:
    kept, resumed = (KnapsackAllocator(WindowBeliefs(min_rewards=1), sgpo_rule) for _ in range(2))
    assert kept.plan(["a", "b"], 16, 0).counts_P.tolist() == [8, 8]
    kept.observe(Outcomes.of_groups(0, [("a", [1.0, 0.0, 0.0, 0.0]), ("b", [1.0] * 4)]))
    kept.save(tmp_path / "saved")
    resumed.load(tmp_path / "saved")
    for each in (kept, resumed):
        assert each.plan(["a", "b", "new"], 28, 1).counts_P.tolist() == [16, 4, 8]  # 1/p = 4, 1, 2


def test_what_the_limits_cannot_meet_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        planned([0.5, 0.5], 3)
    with pytest.raises(ValueError, match="budget"):
        planned([0.5, 0.5], 33, high=16)
