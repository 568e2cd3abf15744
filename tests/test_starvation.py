"""The waiting time of every prompt is bounded, independently of its forecast (docs/beliefs.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.allocator import OVERDUE_SHARE, KnapsackAllocator, overdue
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.config import CHOOSING, AllocationConfig, RuleName
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes


class Stubborn(BetaBeliefs):
    """Forecasts with certainty that some prompts are hopeless and all others are at one half."""

    def __init__(self, hopeless: set[str]) -> None:
        super().__init__()
        self.hopeless = hopeless

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        rates_P = np.array([1e-9 if prompt_id in self.hopeless else 0.5 for prompt_id in prompt_ids])
        return replace(
            super().forecast(prompt_ids, step), success_rates_P=rates_P, pseudo_count_P=np.full(rates_P.size, 1e9)
        )


def failures(step: int, allocator: KnapsackAllocator, offered: Sequence[str], budget: int) -> set[str]:
    """Plan a step in which no rollout succeeds; returns the prompts with rollouts."""
    plan = allocator.plan(offered, budget, step)
    served = {prompt_id: int(n) for prompt_id, n in zip(plan.prompt_ids, plan.counts_P, strict=True) if n}
    allocator.observe(Outcomes.of_groups(step, [(prompt_id, [0.0] * n) for prompt_id, n in served.items()]))
    return set(served)


@given(st.data(), st.integers(2, 12), st.integers(1, 5), st.integers(2, 40), st.floats(0.5, 9), st.floats(0.01, 1.0))
@settings(max_examples=80, deadline=None)
def test_longest_wait(
    data: st.DataObject, prompts: int, every: int, budget: int, max_idle: float, share: float
) -> None:
    """A prompt offered at least once in E steps gets rollouts after at most max_idle + E * ceil(M / c) steps."""
    ids = [f"p{i}" for i in range(prompts)]
    hopeless = data.draw(st.sets(st.sampled_from(ids)))
    allocator = KnapsackAllocator(Stubborn(hopeless), None, 0, max(budget, 2), max_idle, share)
    pairs = max(int(budget * share) // 2, 1)
    bound = max_idle + every * math.ceil(prompts / pairs)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    offered_at, served_at = dict.fromkeys(ids, -1), dict.fromkeys(ids, 0)
    for step in range(int(3 * bound) + 2):
        offered = [p for p in ids if step - offered_at[p] == every or random.random() < 0.3]
        offered_at |= dict.fromkeys(offered, step)
        if offered:
            random.shuffle(offered)
            served_at |= dict.fromkeys(failures(step, allocator, offered, budget), step)
        assert all(step - served_at[p] <= bound for p in ids), f"{served_at} at step {step}"


def test_without_max_idle_a_hopeless_prompt_gets_nothing() -> None:
    ids = ["bad", "good", "better"]
    for max_idle, expected in ((None, []), (10, [11, 22])):
        allocator = KnapsackAllocator(Stubborn({"bad"}), None, 0, 64, max_idle)
        assert [step for step in range(25) if "bad" in failures(step, allocator, ids, 16)] == expected


def test_overdue_prompts_take_no_more_than_their_share() -> None:
    ids = [f"p{i}" for i in range(40)]
    allocator = KnapsackAllocator(Stubborn(set(ids) - {"p0"}), None, 0, 128, max_idle=5)
    plan = allocator.plan(ids, 64, 100)
    assert np.count_nonzero(plan.low_P) == 4  # an eighth of 64 rollouts is 4 pairs
    assert plan.counts_P[1:4].tolist() == [2, 2, 2]
    assert plan.counts_P[0] > 50  # the prompt with a value
    assert OVERDUE_SHARE == 1 / 8


def test_overdue_prompts_are_those_that_waited_longest() -> None:
    ids = ("a", "b", "c", "a", "d")
    idle = np.array([7, 9, 3, 7, 8])
    assert overdue(ids, idle, 3, 9).tolist() == [True, True, False, False, True]  # c waited 3, which is not beyond 3
    assert overdue(ids, idle, 3, 2).tolist() == [False, True, False, False, True]
    assert not overdue(ids, idle, 9, 9).any()


@pytest.mark.parametrize("budget", [0, 2, 3, 5, 16])
def test_small_budgets_are_met(budget: int) -> None:
    plan = KnapsackAllocator(Stubborn({"a", "b"}), None, 0, 64, max_idle=1).plan(["a", "b", "c"], budget, 50)
    assert plan.counts_P.sum() == budget
    assert plan.counts_P[0] == min(budget, 2 + (budget == 3))  # a single rollout would be no group


@pytest.mark.parametrize("make", [BetaBeliefs, CalibratedBeliefs, WindowBeliefs])
def test_all_beliefs_count_steps_since_an_observation(make: type[BetaBeliefs | WindowBeliefs], tmp_path: Path) -> None:
    beliefs: Beliefs = make()
    beliefs.observe(Outcomes.of_groups(3, [("a", [1.0, 0.0]), ("unanswered", [math.nan, math.nan])]))
    beliefs.observe(Outcomes.of_groups(2, [("a", [1.0, 0.0])]))  # late
    assert waited(beliefs, 8) == [5, 8, 8]
    beliefs.save(tmp_path / "beliefs.npz")
    loaded = make()
    loaded.load(tmp_path / "beliefs.npz")
    assert waited(loaded, 8) == [5, 8, 8]


def waited(beliefs: Beliefs, step: int) -> list[int]:
    steps_since_observed_P = beliefs.forecast(["a", "unanswered", "new"], step).steps_since_observed_P
    assert steps_since_observed_P is not None
    return steps_since_observed_P.tolist()


def test_known_rates_are_never_overdue() -> None:
    assert waited(StaticBeliefs(lambda ids: np.full(len(ids), 0.5)), 99) == [0, 0, 0]


@pytest.mark.parametrize("rule", CHOOSING)
def test_max_idle_is_two_half_lives_where_prompts_may_be_left_out(rule: RuleName) -> None:
    assert AllocationConfig(rule=rule, min_count=0, half_life=30.0).make_allocator().max_idle == 60
    assert AllocationConfig(rule=rule, min_count=2, half_life=30.0).make_allocator().max_idle is None


@pytest.mark.parametrize("wrong", [{"max_idle": 0}, {"overdue_share": 0}, {"overdue_share": 1.5}], ids=str)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        KnapsackAllocator(None, None, 0, **wrong)  # type: ignore[arg-type]
