"""VIP: its closed forms, equal prices at the optimum, its least count, and prompts without variance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.published.vip import expected_variance, vip_dr_grpo_rule, vip_rloo_rule
from knapsack_rl import BetaBeliefs, KnapsackAllocator
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.rules import AllocationRule

Variance = Callable[[float, float], float]


def rloo(a: float, n: float) -> float:
    return a / (n - 1)


def dr_grpo(a: float, n: float) -> float:
    return a * (n - 1) / n**2


BOTH = pytest.mark.parametrize(("rule", "variance"), [(vip_rloo_rule, rloo), (vip_dr_grpo_rule, dr_grpo)])


def planned(rule: AllocationRule, rates: list[float], budget: int, high: int = 128) -> list[int]:
    beliefs = StaticBeliefs(lambda ids: np.array([rates[int(i)] for i in ids]))
    allocator = KnapsackAllocator(beliefs, rule, 2, high)
    counts: list[int] = allocator.plan([str(i) for i in range(len(rates))], budget, 0).counts_P.tolist()
    return counts


def rate_of(a: float) -> float:
    """The p below 1/2 with 4 p (1 - p) = a."""
    return float((1 - np.sqrt(1 - a)) / 2)


def test_dr_grpo_is_the_root_of_its_cubic() -> None:
    # a (n - 2) / n^3 = 6 / 512 at n = 8, 6, 4: a = 1, (6 / 512) * 216 / 4, (6 / 512) * 64 / 2
    a = [1.0, 6 / 512 * 216 / 4, 6 / 512 * 64 / 2]
    assert a == pytest.approx([1, 0.6328125, 0.375])
    assert planned(vip_dr_grpo_rule, [rate_of(each) for each in a], 18) == [8, 6, 4]


def test_rloo_is_its_closed_form_rounded() -> None:
    # 4 + sum sqrt(a / lambda) = 50, roots of a summing to 1 + .94868 + .70711 + .5 = 3.15579, so sqrt(1 / lambda) is
    # 46 / 3.15579 = 14.57638 and n = 15.576, 14.828, 11.307, 8.288
    assert planned(vip_rloo_rule, [rate_of(a) for a in (1.0, 0.9, 0.5, 0.25)], 50) == [16, 15, 11, 8]


@BOTH
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6), st.integers(3, 20), st.integers(0, 5))
def test_no_rollout_would_lower_more_variance_elsewhere(
    rule: AllocationRule, variance: Variance, rates: list[float], mean: int, extra: int
) -> None:
    high = 20
    budget = min(mean * len(rates) + extra, high * len(rates))
    counts = planned(rule, rates, budget, high)
    a = [4 * p * (1 - p) for p in rates]
    next_ = [variance(ai, n) - variance(ai, n + 1) for ai, n in zip(a, counts, strict=True) if n < high]
    last = [variance(ai, n - 1) - variance(ai, n) for ai, n in zip(a, counts, strict=True) if n > 3]
    assert sum(counts) == budget and min(counts) >= 3 and max(counts) <= high
    assert max(next_, default=0.0) <= min(last, default=np.inf) + 1e-12


@BOTH
def test_the_least_is_three_unless_the_budget_does_not_reach(rule: AllocationRule, variance: Variance) -> None:
    assert planned(rule, [0.5, 0.5, 0.5], 9) == [3, 3, 3]
    assert sorted(planned(rule, [0.5, 0.5, 0.5], 8)) in ([2, 3, 3], [2, 2, 4])
    assert planned(rule, [0.5, 0.5, 0.5], 6) == [2, 2, 2]
    assert planned(rule, [0.5, 0.5, 0.5], 6, high=2) == [2, 2, 2]


@BOTH
def test_below_three_a_head_the_whole_numbers_are_still_the_best(rule: AllocationRule, variance: Variance) -> None:
    rates, budget = [0.5, 0.3, 0.05], 8
    a = [4 * p * (1 - p) for p in rates]
    ways = [(2, 2, 4), (2, 4, 2), (4, 2, 2), (2, 3, 3), (3, 2, 3), (3, 3, 2)]
    totals = [sum(variance(ai, n) for ai, n in zip(a, way, strict=True)) for way in ways]
    assert tuple(planned(rule, rates, budget)) == ways[int(np.argmin(totals))]


@BOTH
def test_prompts_without_variance_get_more_only_when_the_others_are_full(
    rule: AllocationRule, variance: Variance
) -> None:
    assert planned(rule, [0.0, 0.5, 1.0], 26, high=20) == [3, 20, 3]
    assert planned(rule, [0.0, 0.5, 1.0], 36, high=20) == [8, 20, 8]
    assert planned(rule, [0.0, 0.5, 1.0], 60, high=20) == [20, 20, 20]
    assert planned(rule, [0.0] * 5, 40) == planned(rule, [1.0] * 5, 40) == [8] * 5


@BOTH
def test_one_prompt_gets_it_all_and_both_sides_of_one_half_are_alike(rule: AllocationRule, variance: Variance) -> None:
    assert planned(rule, [0.125], 17) == [17]
    first, second = planned(rule, [0.25, 0.75], 40)
    assert first == second == 20


def test_unseen_prompts_have_the_variance_of_the_prior() -> None:
    # Beta(1/2, 1/2): 1/4 / (1 * 2)
    assert expected_variance(BetaBeliefs().forecast(["new"], 0)) == pytest.approx([0.125])
