"""GVM and CurES without gradients: their proportions, prompts without a share, limits, and a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.gvm import cures_rule, gvm_rule, gvm_shares
from knapsack_rl import KnapsackAllocator, Outcomes
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.rules import AllocationRule

RULES = pytest.mark.parametrize("rule", [gvm_rule, cures_rule])


def given(rates: list[float]) -> StaticBeliefs:
    return StaticBeliefs(lambda ids: np.array([rates[int(i)] for i in ids]))


def planned(rule: AllocationRule, rates: list[float], budget: int, high: int = 128) -> list[int]:
    allocator = KnapsackAllocator(given(rates), rule, 2, high)
    counts: list[int] = allocator.plan([str(i) for i in range(len(rates))], budget, 0).counts_P.tolist()
    return counts


def test_gvm_weighs_rare_successes_most_but_not_the_rarest() -> None:
    # p + .001 / p is least at p = sqrt(.001) = .0316, where it is twice that
    rates = np.linspace(0.001, 1, 100_000)
    shares = gvm_shares(rates)
    assert rates[np.argmax(shares)] == pytest.approx(0.001**0.5, abs=1e-4)
    assert shares.max() == pytest.approx((2 * 0.001**0.5) ** -0.5)
    assert gvm_shares(np.array([1e-6])) == pytest.approx([(1e-6 + 1e3) ** -0.5])


def test_gvm_divides_in_proportion() -> None:
    # 1 / sqrt of 1.001, .254 and .0785: .9995, 1.9842, 3.5692; 66 of 6.5529 are 10.1, 20.0, 35.9
    assert planned(gvm_rule, [1.0, 0.25, 0.0625], 66) == [10, 20, 36]


def test_cures_divides_in_proportion_and_both_sides_of_one_half_alike() -> None:
    # 5 : 4 : 4 : 3
    assert planned(cures_rule, [0.5, 0.2, 0.8, 0.1], 48) == [15, 12, 12, 9]


@RULES
def test_what_the_formula_gives_nothing_gets_the_least_until_the_others_are_full(rule: AllocationRule) -> None:
    assert planned(rule, [0.0, 0.5, 0.0], 24) == [2, 20, 2]
    assert planned(rule, [0.0, 0.5, 0.0], 40, high=20) == [10, 20, 10]
    assert planned(rule, [0.0] * 4, 32) == planned(rule, [1.0] * 4, 32) == [8] * 4


@RULES
def test_limits_leave_no_choice_and_one_prompt_gets_it_all(rule: AllocationRule) -> None:
    assert planned(rule, [0.0, 0.3, 0.5], 6, high=9) == [2, 2, 2]
    assert planned(rule, [0.0, 0.3, 0.5], 27, high=9) == [9, 9, 9]
    assert planned(rule, [0.3], 11) == [11]


@RULES
def test_unseen_prompts_count_as_one_half(rule: AllocationRule) -> None:
    allocator = KnapsackAllocator(WindowBeliefs(min_rewards=1), rule)
    allocator.observe(Outcomes.of_groups(0, [("half", [1.0, 0.0]), ("never", [0.0, 0.0])]))
    assert allocator.plan(["new", "half", "never"], 22, 1).counts_P.tolist() == [10, 10, 2]


@RULES
def test_a_resumed_run_plans_on(rule: AllocationRule, tmp_path: Path) -> None:
    ids = ["new", "half", "tenth", "never"]
    allocator, resumed = (KnapsackAllocator(WindowBeliefs(min_rewards=1), rule) for _ in range(2))
    untaught = allocator.plan(ids, 40, 1).counts_P.tolist()
    groups = [("half", [1.0, 0.0]), ("tenth", [1.0] + [0.0] * 9), ("never", [0.0] * 4)]
    allocator.observe(Outcomes.of_groups(0, groups))
    allocator.save(tmp_path / "saved")
    resumed.load(tmp_path / "saved")
    for each in (allocator, resumed):
        each.observe(Outcomes.of_groups(1, [("new", [0.0, 0.0, 1.0])]))
    found = resumed.plan(ids, 40, 2).counts_P.tolist()
    assert found == allocator.plan(ids, 40, 2).counts_P.tolist() != untaught == [10] * 4
