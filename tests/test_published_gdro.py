"""Rollout-GDRO: bins, the square root that minimises their variance, and bins without any."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from knapsack_arena.published.gdro import bin_variances, gdro_rule
from knapsack_rl import KnapsackAllocator, Outcomes
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs


def planned(rates: list[float], budget: int, high: int = 128) -> list[int]:
    beliefs = StaticBeliefs(lambda ids: np.array([rates[int(i)] for i in ids]))
    allocator = KnapsackAllocator(beliefs, gdro_rule, 2, high)
    counts: list[int] = allocator.plan([str(i) for i in range(len(rates))], budget, 0).counts_P.tolist()
    return counts


def test_a_bin_is_a_tenth_and_holds_its_lower_edge() -> None:
    # [.1, .2): .1 and .19, mean of .09 and .1539; [.2, .3): .2 alone; [.9, 1]: .9 and 1, mean of .09 and 0
    found = bin_variances(np.array([0.1, 0.19, 0.2, 0.9, 1.0]))
    np.testing.assert_allclose(found, [0.12195, 0.12195, 0.16, 0.045, 0.045])


def test_prompts_of_a_bin_are_alike_and_bins_go_by_the_square_root() -> None:
    # .4 and .49 share a bin: .24495; roots .49492, .49492, .3 (p = .9), .21794 (p = .05): 60 of 1.50778 are
    # 19.7, 19.7, 11.9, 8.7; the remainders .93, .69, .69, .67 get the three that rounding down leaves
    assert planned([0.4, 0.49, 0.9, 0.05], 60) == [20, 20, 12, 8]


def test_the_square_root_leaves_the_least_variance() -> None:
    # one prompt a bin, roots 5 : 4 : 3 of .5, so real shares of 24 are whole: 10, 8, 6
    rates = [0.5, 0.2, 0.1]
    assert planned(rates, 24) == [10, 8, 6]

    def left(division: tuple[int, ...]) -> float:
        return sum(p * (1 - p) / n for p, n in zip(rates, division, strict=True))

    best = min((each for each in product(range(2, 21), repeat=3) if sum(each) == 24), key=left)
    assert best == (10, 8, 6)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_bin_without_variance_gets_the_least_and_if_none_has_any_all_are_alike(rate: float) -> None:
    assert planned([rate, 0.5, rate], 24) == [2, 20, 2]
    assert planned([rate, 0.5, rate], 40, high=20) == [10, 20, 10]
    assert planned([rate] * 4, 32) == [8] * 4


def test_a_solved_prompt_shares_the_variance_of_its_bin() -> None:
    # [.9, 1]: mean of .09 and 0 for both; roots .21213, .21213, .5
    assert planned([1.0, 0.9, 0.5], 40) == [9, 9, 22]


def test_limits_leave_no_choice_and_one_prompt_gets_it_all() -> None:
    assert planned([0.0, 0.3, 0.5], 6, high=9) == [2, 2, 2]
    assert planned([0.0, 0.3, 0.5], 27, high=9) == [9, 9, 9]
    assert planned([0.3], 11) == [11]


def test_unseen_prompts_are_in_the_bin_of_one_half() -> None:
    allocator = KnapsackAllocator(WindowBeliefs(min_rewards=1), gdro_rule)
    allocator.observe(Outcomes.of_groups(0, [("tenth", [1.0] + [0.0] * 9), ("half", [1.0, 0.0])]))
    # roots .5, .5, .3 of 39
    assert allocator.plan(["new", "half", "tenth"], 39, 1).counts_P.tolist() == [15, 15, 9]
