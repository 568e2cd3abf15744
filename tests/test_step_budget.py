from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.config import AllocationConfig
from knapsack_rl.knapsack.limits import NoCountsError
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.knapsack.step_budget import best_budget
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.session import Session
from knapsack_rl.values import knapsack_marginals


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 12), st.floats(0, 60), st.integers(0, 2**32 - 1))
def test_no_budget_has_more_value_for_a_unit_of_cost(prompts: int, cost: float, seed: int) -> None:
    """Against all budgets; every prompt has a group, so that the value is concave in the budget without gaps."""
    rates = np.random.default_rng(seed).beta(0.5, 0.5, prompts)
    marginals, low_P, high_P = knapsack_marginals(rates, 12), np.full(prompts, 2), np.full(prompts, 12)
    least, most = 2 * prompts, 12 * prompts

    def rate(budget: int) -> float:
        return solve(marginals, budget, low_P, high_P).value / (budget + cost)

    found = best_budget(marginals, least, most, low_P, high_P, cost)
    best = max(rate(budget) for budget in range(least, most + 1))
    assert rate(found) == pytest.approx(best, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 30), st.floats(1, 60), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_with_prompts_left_out_the_loss_is_at_most_a_group(prompts: int, cost: float, smallest: int, seed: int) -> None:
    rates = np.random.default_rng(seed).beta(0.5, 0.5, prompts)
    marginals, low_P, high_P = knapsack_marginals(rates, 16), np.zeros(prompts, np.int64), np.full(prompts, 16)
    least, most = 2 * smallest, 6 * prompts

    def solved(budget: int) -> float:
        return solve(marginals, budget, low_P, high_P, min_group=smallest).value

    found = best_budget(marginals, least, most, low_P, high_P, cost, smallest)
    best = max(solved(budget) / (budget + cost) for budget in range(least, most + 1))
    largest = marginals[:, :smallest].sum(axis=1).max()
    assert (solved(found) + largest) / (found + cost) >= best - 1e-12


def test_a_step_that_costs_more_is_larger() -> None:
    rates = np.random.default_rng(0).beta(0.5, 0.5, 64)
    low_P, high_P = np.zeros(64, np.int64), np.full(64, 64)
    marginals = knapsack_marginals(rates, 64)
    budgets = [best_budget(marginals, 8, 512, low_P, high_P, cost) for cost in (0, 4, 16, 64, 256, 10_000)]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1]


def test_the_allocator_spends_what_a_step_deserves() -> None:
    ids = [f"p{i}" for i in range(64)]
    free = KnapsackAllocator(min_count=0, step_cost=0.0, least_budget=0.25)
    fixed = KnapsackAllocator(min_count=0)
    dear = KnapsackAllocator(min_count=0, step_cost=1e6)
    assert fixed.plan(ids, 128, 0).budget == 128
    assert free.plan(ids, 128, 0).budget == 32  # all prompts are alike: a second rollout is never worth more
    assert dear.plan(ids, 128, 0).budget == 128
    assert int(free.plan(ids, 128, 0).counts_P.sum()) == 32


@pytest.mark.parametrize("setting", [{"step_cost": -1.0}, {"step_cost": math.inf}, {"least_budget": 0.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        KnapsackAllocator(**setting)  # type: ignore[arg-type]


def test_limits_that_cross_are_refused() -> None:
    with pytest.raises(ValueError, match="smallest budget, 9, is above the largest, 8"):
        best_budget(np.ones((2, 8)), 9, 8, np.array([0, 0]), np.array([8, 8]), 1.0)


def test_a_plan_is_told_what_its_step_deserves() -> None:
    allocator, adaptive = KnapsackAllocator(min_count=0), KnapsackAllocator(min_count=0, step_cost=0.1)
    random = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(128)]
    rewards = (random.random(128 * 8) < np.repeat(random.beta(0.5, 0.5, 128), 8)).astype(float)
    outcomes = Outcomes.from_rollouts(0, [name for name in ids for _ in range(8)], rewards)
    for each in (allocator, adaptive):
        each.observe(outcomes)
    assert allocator.deserved(allocator.plan(ids, 256, 1), 0.1) == adaptive.plan(ids, 256, 1).budget < 256


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 10), st.integers(2, 8), st.integers(0, 3), st.floats(0, 60), st.integers(0, 2**32 - 1))
def test_budgets_that_no_counts_sum_to_are_passed_over(
    prompts: int, smallest: int, more: int, cost: float, seed: int
) -> None:
    """Groups of 8 or 9 sum to 8, 9, 16, 17, 18 ...: the budget found is one of those, and the plan can be made."""
    rates = np.random.default_rng(seed).beta(0.5, 0.5, prompts)
    largest = smallest + more
    marginals, low_P, high_P = (
        knapsack_marginals(rates, largest),
        np.zeros(prompts, np.int64),
        np.full(prompts, largest),
    )
    least, most = 1, prompts * largest
    found = best_budget(marginals, least, most, low_P, high_P, cost, smallest)
    assert least <= found <= most
    assert solve(marginals, found, low_P, high_P, min_group=smallest).counts_P.sum() == found


def test_limits_between_which_no_counts_lie_are_refused() -> None:
    with pytest.raises(NoCountsError, match="sum to a budget of 7"):
        best_budget(np.ones((4, 8)), 5, 7, np.zeros(4, np.int64), np.full(4, 4), 1.0, min_group=4)
    with pytest.raises(ValueError, match="budget of 3: a step needs 4 rollouts at least, or a smaller min_group"):
        solve(np.ones((4, 8)), 3, np.zeros(4, np.int64), np.full(4, 8), min_group=4)


def test_an_adaptive_budget_and_advice_with_groups_of_one_size() -> None:
    config = AllocationConfig(min_group=8, max_count=8, budget="adaptive")
    session, ids = Session(config), [f"p{i}" for i in range(60)]
    plan = session.plan(ids, 256)
    assert set(plan.counts_P.tolist()) == {0, 8}
    assert isinstance(session.allocator, KnapsackAllocator)
    assert session.allocator.deserved(plan, 0.1) % 8 == 0
