"""The laboratory's controls and ceiling: the index by simulation, stopping, and permuted forecasts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.controls import ROUNDS, ByTokens, Shuffled, StopWhenMixed, index
from benchmarks.other_values import end_marginals

from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import information_gain
from scripted import Script, asked, trained

IDS = tuple(f"p{i:02d}" for i in range(32))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_a_new_group_is_worth_its_best_size(rate: float) -> None:
    """P(mixed by n) and the rollouts used, by simulation."""
    hits = np.random.default_rng(0).random((50_000, 64)) < rate
    first_other = np.where((hits != hits[:, :1]).any(axis=1), (hits != hits[:, :1]).argmax(axis=1) + 1, 65)
    best = max((first_other <= n).mean() / np.minimum(first_other, n).mean() for n in range(1, 65))
    zero = np.zeros(1, dtype=np.int64)
    found = index(np.array([rate]), zero, zero)[0] / information_gain(np.array([rate]))[0]
    assert found == pytest.approx(best, rel=0.02)


def test_the_next_rollout_is_worth_the_chance_that_it_differs() -> None:
    rates, counts, wins = np.full(3, 0.2), np.array([3, 3, 3]), np.array([0, 3, 1])
    found = index(rates, counts, wins)
    np.testing.assert_allclose(found, [0.2 * 0.2 * 0.64, 0.8 * 0.2 * 0.64, -1])


def test_mixed_groups_get_no_more_and_the_budget_is_spent() -> None:
    rewards = {prompt_id: ("10", "01", "0000001", "1110")[i % 4] for i, prompt_id in enumerate(IDS)}
    context = RuleContext(groups=8, prompts=32, truth=lambda ids: np.full(len(ids), 0.4))
    result = Script(rewards).run_step(StopWhenMixed(context), groups=8, budget=64)
    rounds = asked(result)
    assert [sum(each.values()) for each in rounds] == [4] * ROUNDS
    spent = Counter(prompt_id for each in rounds for prompt_id in each)
    for prompt_id, used in spent.items():
        text = rewards[prompt_id]
        mixed_at = next(n for n in range(2, 9) if len(set(text[:n])) == 2)
        assert used <= mixed_at
    assert set(trained(result)) == {prompt_id for prompt_id, used in spent.items() if used >= 2}


def test_forecasts_are_permuted() -> None:
    context = RuleContext(groups=8, prompts=32, average=4)
    rewards = dict.fromkeys(IDS[:16], "0") | dict.fromkeys(IDS[16:], "10" * 50)
    chosen = {}
    for name in ("calibrated-pool", "shuffled"):
        strategy = make_strategy(name, context) if name != "shuffled" else Shuffled(replace(context, seed=5))
        world = Script(rewards)
        for step in range(12):
            (request,) = asked(world.run_step(strategy, groups=8, budget=32, step=step))
        chosen[name] = sum(prompt_id in IDS[16:] for prompt_id in request) / len(request)
    assert chosen["calibrated-pool"] > 0.9
    assert 0.1 < chosen["shuffled"] < 0.9


def test_a_budget_in_tokens_buys_more_short_answers() -> None:
    """Equal rates, and answers of 10 or 100 tokens: 32 rollouts of 55 tokens on average are up to 176 short ones."""
    strategy = ByTokens(RuleContext(groups=8, prompts=32, average=4))
    counts = np.full(32, 4)
    tokens = np.repeat(np.where(np.arange(32) < 16, 10, 100), counts)
    strategy.allocator.observe(Outcomes(0, IDS, counts, np.tile([1.0, 0.0], 64), tokens))
    (request,) = asked(Script(dict.fromkeys(IDS, "10" * 100)).run_step(strategy, groups=8, budget=32, step=1))
    short = sum(request.get(prompt_id, 0) for prompt_id in IDS[:16])
    assert 100 < short < sum(request.values()) <= 176


@pytest.mark.parametrize("kept", [False, True])
def test_the_value_until_the_end_is_the_mean_over_beliefs(kept: bool) -> None:
    """E[(1 - p^n - q^n) q] under Beta(.7, 2), without q^n where a success is kept; by sampling."""
    p = np.random.default_rng(0).beta(0.7, 2.0, 400_000)
    table = end_marginals(np.array([0.7]), np.array([2.0]), np.array([kept]), 13)[0]
    for n in (2, 3, 8, 12):
        failing = 0.0 if kept else (1 - p) ** n
        assert table[:n].sum() == pytest.approx(((1 - p**n - failing) * (1 - p)).mean(), abs=2e-3)
