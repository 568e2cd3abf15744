"""A budget in tokens: the plan is the solver's with costs, and a schedule shrinks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl import AllocationConfig, KnapsackAllocator, Outcomes, Session
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.rules import expected_value


def _learned(allocator: KnapsackAllocator, prompts: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    ids = [f"p{i}" for i in range(prompts)]
    rollouts = [name for name in ids for _ in range(4)]
    tokens = np.repeat(random.integers(10, 200, prompts), 4)
    rewards = (random.random(len(rollouts)) < np.repeat(random.beta(0.5, 0.5, prompts), 4)).astype(float)
    allocator.observe(Outcomes.from_rollouts(0, rollouts, rewards, tokens))
    return ids


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 24), st.sampled_from([0, 2]), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_without_decay_the_plan_is_the_solvers_with_costs(prompts: int, least: int, smallest: int, seed: int) -> None:
    smallest = smallest if least == 0 else 2
    allocator = KnapsackAllocator(min_count=least, min_group=smallest, token_share=lambda step: 1.0)
    ids = _learned(allocator, prompts, seed)
    plan = allocator.plan(ids, 8 * prompts, 1)
    forecast = allocator.beliefs.forecast(ids, 1)
    problem = expected_value(forecast, 8 * prompts, least, 128)
    budget = 8 * prompts * forecast.tokens_P.mean()
    expected = solve(problem.marginals, budget, problem.low_P, problem.high_P, forecast.tokens_P, smallest)
    assert plan.counts_P.tolist() == expected.counts_P.tolist()
    assert plan.budget == plan.counts_P.sum()
    assert (plan.counts_P * forecast.tokens_P).sum() <= budget * (1 + 1e-9)


def test_a_schedule_shrinks_the_tokens_of_later_steps() -> None:
    config = AllocationConfig(rule="beta", budget="tokens", token_decay=0.7, token_every=150)
    session = Session(config)
    assert isinstance(session.allocator, KnapsackAllocator)
    ids = _learned(session.allocator, 32, 0)
    spent = []
    for step in (0, 149, 150, 450):
        plan = session.allocator.plan(ids, 64, step)
        spent.append(float((plan.counts_P * session.allocator.beliefs.forecast(ids, step).tokens_P).sum()))
    mean = session.allocator.beliefs.forecast(ids, 0).tokens_P.mean()
    np.testing.assert_allclose(spent, 64 * mean * 0.7 ** np.array([0, 0, 1, 3]), rtol=0.12)
    assert session.plan(ids, 64).budget != 64  # the number of rollouts is free


def test_prompts_of_unknown_length_cost_the_mean_of_the_others() -> None:
    allocator = KnapsackAllocator(min_count=0, token_share=lambda step: 1.0)
    fixed = KnapsackAllocator(min_count=0)
    ids = [f"p{i}" for i in range(16)]
    assert allocator.plan(ids, 64, 0).counts_P.tolist() == fixed.plan(ids, 64, 0).counts_P.tolist()


@pytest.mark.parametrize("wrong", [{"token_decay": 0.0}, {"token_decay": 1.5}, {"token_every": 0}, {"budget": "words"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AllocationConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"token_share\(3\) is 0"):
        KnapsackAllocator(token_share=lambda step: 0.0).plan(["a"], 4, 3)
