from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from allocators import allocator_of
from knapsack_rl.allocator import Allocator, KnapsackAllocator
from knapsack_rl.files import BeliefFileError
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import expected_knapsack_value
from strategies import outcome_streams

RuleName = Literal["beta", "paper", "uniform"]
RULES: tuple[RuleName, ...] = ("beta", "paper", "uniform")
IDS = tuple(f"q{i}" for i in range(6))


def taught(rule: RuleName, stream: list[Outcomes], **settings: int) -> KnapsackAllocator:
    allocator = allocator_of(rule, **settings)
    for outcomes in stream:
        allocator.observe(outcomes)
    return allocator


def epoch(rates: np.ndarray, rollouts: int = 16, seed: int = 0) -> Outcomes:
    rewards = (np.random.default_rng(seed).random((rates.size, rollouts)) < rates[:, None]).astype(float)
    return Outcomes(0, tuple(f"p{i}" for i in range(rates.size)), np.full(rates.size, rollouts), rewards.ravel())


@pytest.mark.parametrize("rule", RULES)
@given(stream=outcome_streams(), ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=12), mean=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_every_plan_spends_the_budget_within_the_limits(
    rule: RuleName, stream: list[Outcomes], ids: list[str], mean: int
) -> None:
    """Whatever was seen before, in whatever order, and though an id may occur twice. `Plan` checks the rest."""
    allocator = taught(rule, stream, max_count=24)
    plan = allocator.plan(ids, mean * len(ids), 201)
    assert plan.counts_P.sum() == mean * len(ids)
    assert plan.counts_P.min() >= 2
    assert plan.counts_P.max() <= 24
    assert plan.prompt_ids == tuple(ids)
    again = allocator.plan(ids, mean * len(ids), 201)  # planning changes nothing
    np.testing.assert_array_equal(plan.counts_P, again.counts_P)


@given(outcome_streams(), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_prompts_may_be_left_out(stream: list[Outcomes], budget: int) -> None:
    assume(budget != 1)
    plan = taught("beta", stream, min_count=0).plan(IDS, budget, 201)
    assert plan.counts_P.sum() == budget
    assert 1 not in plan.counts_P


def test_no_other_plan_is_worth_more_under_the_beliefs() -> None:
    rates = np.array([0.0, 0.02, 0.3, 0.5, 0.97, 1.0])
    allocator = allocator_of("beta")
    allocator.observe(epoch(rates))
    ids = tuple(f"p{i}" for i in range(6))
    plan = allocator.plan(ids, 48, 1)
    forecast = allocator.beliefs.forecast(ids, 1)
    values = expected_knapsack_value(forecast.alpha_P, forecast.beta_P, 49)
    for i in range(6):  # moving a rollout between any two prompts never pays, which suffices where values are concave
        for j in range(6):
            if i != j and plan.counts_P[j] > 2:
                counts = plan.counts_P + np.eye(6, dtype=int)[i] - np.eye(6, dtype=int)[j]
                assert values[np.arange(6), counts].sum() <= values[np.arange(6), plan.counts_P].sum() + 1e-12


def test_before_anything_is_seen_all_rules_are_uniform() -> None:
    for rule in RULES:
        assert allocator_of(rule).plan(IDS, 48, 0).counts_P.tolist() == [8] * 6


def test_uncertainty_buys_exploration_where_the_paper_gives_the_minimum() -> None:
    rates = np.array([0.0] * 8 + [0.5] * 8 + [1.0] * 8)
    ids = tuple(f"p{i}" for i in range(24))
    plans = {}
    for rule in RULES:
        allocator = allocator_of(rule)
        allocator.observe(epoch(rates))
        plans[rule] = allocator.plan(ids, 24 * 8, 1).counts_P
    assert plans["uniform"].tolist() == [8] * 24
    assert (plans["paper"][16:] == 2).all()  # solved: the minimum
    assert plans["paper"][:8].mean() > 8  # surplus, as the mixed ones need only 3 more for 90 %
    # A belief near 0 buys rollouts like any other; one near 1 does not, for the gain is p (1-p)^2.
    assert plans["beta"][:8].mean() > 4 > plans["beta"][16:].mean()


def test_the_plan_tells_what_it_was_decided_on() -> None:
    allocator = allocator_of("beta", half_life=10)
    allocator.observe(Outcomes.of_groups(0, [("q0", [1.0] * 3 + [0.0])]))
    plan = allocator.plan(("q0", "q1"), 8, 10)
    assert plan.success_rates_P.tolist() == pytest.approx([(0.5 + 1.5) / 3, 0.5])
    assert plan.pseudo_count_P.tolist() == pytest.approx([3, 1])
    assert plan.seen_P.tolist() == [True, False]
    assert plan.step == 10
    assert plan.price > 0


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_was_stopped_goes_on_as_if_it_were_not(tmp_path: Path, rule: RuleName) -> None:
    rng = np.random.default_rng(0)
    rates = rng.random(40)

    def run(allocator: KnapsackAllocator, steps: range) -> list[list[int]]:
        counts = []
        for step in steps:
            chosen = np.random.default_rng(step).choice(40, 10, replace=False)
            plan = allocator.plan([f"p{i}" for i in chosen], 80, step)
            rewards = np.random.default_rng(step + 999).random(80) < np.repeat(rates[chosen], plan.counts_P)
            allocator.observe(Outcomes(step, plan.prompt_ids, plan.counts_P, rewards.astype(float)))
            counts.append(plan.counts_P.tolist())
        return counts

    straight = allocator_of(rule)
    run(straight, range(12))
    straight.save(tmp_path / "state.npz")
    resumed = allocator_of(rule)
    resumed.load(tmp_path / "state.npz")
    assert run(resumed, range(12, 24)) == run(straight, range(12, 24))


def test_beliefs_of_another_rule_are_refused(tmp_path: Path) -> None:
    allocator_of("beta").save(tmp_path / "state.npz")
    with pytest.raises(BeliefFileError, match="state.npz"):
        allocator_of("paper").load(tmp_path / "state.npz")


def test_the_protocol_is_what_the_allocator_offers() -> None:
    allocator: Allocator = KnapsackAllocator()
    assert allocator.plan(("a", "b"), 8, 0).counts_P.tolist() == [4, 4]


@pytest.mark.parametrize("rule", RULES)
def test_a_plan_without_prompts_is_refused(rule: RuleName) -> None:
    with pytest.raises(ValueError, match="no prompts to plan for"):
        allocator_of(rule).plan((), 0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_below_the_minima_is_refused(rule: RuleName) -> None:
    with pytest.raises(ValueError, match=r"budget of 7 .* below the 8|7 rollouts for 4 prompts leave groups of one"):
        allocator_of(rule).plan(IDS[:4], 7, 0)


def test_a_budget_above_the_maxima_is_refused() -> None:
    with pytest.raises(ValueError, match="budget of 17 rollouts is above the 16"):
        allocator_of("beta", max_count=4).plan(IDS[:4], 17, 0)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1, 128, "min_count is 1: a group of one has no gradient, use 0 or at least 2"),
        (-2, 128, "min_count is -2"),
        (4, 3, r"max_count is 3: it must be at least min_group \(2\) and min_count \(4\)"),
        (0, 1, "max_count is 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(low: int, high: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KnapsackAllocator(min_count=low, max_count=high)


def test_an_unknown_rule_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'greedy': choose from calibrated, beta, paper, uniform"):
        allocator_of("greedy")
