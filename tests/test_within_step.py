"""Rules that decide within the step by forecasts (benchmarks/within_step.py)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from benchmarks.within_step import ROUNDS, FourRounds, PricedStages, best_rollouts, worth

from knapsack_arena.registry import RuleContext
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.kept import KeptSuccesses
from scripted import Script, asked, trained

IDS = tuple(f"p{i:02d}" for i in range(32))


def gain(p: float) -> float:
    return p * (1 - p) ** 2


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_a_rollout_is_worth_the_chance_that_it_mixes_the_group(rate: float) -> None:
    """Rates all but known: a new group, two failures, two successes, mixed, two failures with a kept success."""
    known = Forecast(np.full(5, rate), np.full(5, 1e7), np.ones(5, dtype=bool), np.ones(5))
    counts, wins = np.array([0, 2, 2, 4, 2]), np.array([0, 0, 2, 1, 0])
    found = worth(known, counts, wins, np.array([False, False, False, False, True])) / gain(rate)
    n = np.arange(1, 6)
    value = 1 - rate**n - (1 - rate) ** n
    np.testing.assert_allclose(found[0, :5].cumsum(), value, rtol=1e-4)
    np.testing.assert_allclose(found[1, :5].cumsum(), 1 - (1 - rate) ** n, rtol=1e-4)
    np.testing.assert_allclose(found[2, :5].cumsum(), 1 - rate**n, rtol=1e-4)
    assert not found[3:].any()
    kept = worth(known, np.zeros(5, dtype=int), np.zeros(5, dtype=int), np.ones(5, dtype=bool)) / gain(rate)
    np.testing.assert_allclose(kept[0, 1:5].cumsum(), 1 - rate ** n[1:], rtol=1e-4)


def test_a_pair_comes_before_the_third_rollout_that_is_worth_as_much() -> None:
    even = Forecast(np.full(3, 0.5), np.full(3, 2.0), np.ones(3, dtype=bool), np.ones(3))
    zero = np.zeros(3, dtype=np.int64)
    assert best_rollouts(worth(even, zero, zero, zero.astype(bool)), zero, 5).tolist() == [3, 2, 0]


def test_mixed_groups_get_no_more_and_the_budget_is_spent() -> None:
    rewards = {prompt_id: ("10", "01", "0000001", "1110")[i % 4] * 9 for i, prompt_id in enumerate(IDS)}
    result = Script(rewards).run_step(FourRounds(RuleContext(groups=8, prompts=32)), groups=8, budget=64)
    rounds = asked(result)
    assert [sum(each.values()) for each in rounds] == [16] * ROUNDS
    spent: Counter[str] = Counter()
    for each in rounds:
        for prompt_id, count in each.items():
            assert len(set(rewards[prompt_id][: spent[prompt_id]])) < 2, "a mixed group was given more"
            spent[prompt_id] += count
    assert set(trained(result)) == {prompt_id for prompt_id, used in spent.items() if used >= 2}


def test_a_failing_group_with_a_kept_success_leaves_the_stages() -> None:
    kept = KeptSuccesses()
    kept.keep("p00", 0, [1], [-1.0])
    result = Script(dict.fromkeys(IDS, "0" * 99)).run_step(
        PricedStages(RuleContext(groups=4, prompts=32, kept=kept)), groups=4, budget=32
    )
    spent: Counter[str] = Counter()
    for each in asked(result):
        spent.update(each)
    assert spent == {"p00": 4, "p01": 16, "p02": 16, "p03": 16}
