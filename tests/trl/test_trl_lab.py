"""The laboratory's updates equal those of the TRL trainer, and its exact success rates those of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.lab.policy import Policy
from knapsack_arena.lab.regimes import Regime, skills
from knapsack_arena.strategies import Batch, RolloutRequest
from knapsack_rl import AllocationProblem, KnapsackAllocator, Outcomes
from knapsack_rl.advantages import EPSILON
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.tasks.embedded import taught
from knapsack_rl.tasks.recipe import Recipe
from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer
from knapsack_rl.trl.advantages import EPSILON as TRL_EPSILON

COUNTS = np.array([2, 9, 0, 5])


@pytest.fixture(scope="module")
def regime(tmp_path_factory: pytest.TempPathFactory) -> Regime:
    """A model of three thousand weights, and its prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNAPSACK_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        full = skills(64, 16)
        recipe = Recipe(hidden=16, layers=1, heads=2, intermediate=32, steps=60, batch=64, learning_rate=1e-2)
        small = Regime("small", full.train, full.heldout, taught, recipe, groups=4, average=4, steps=3)
        folder = small.base_model()
        patch.setattr(Regime, "base_model", lambda *_: folder)
        yield small


def trl_run(regime: Regime, folder: Path, weighting: str, scale: str) -> tuple[list[Any], Any]:
    """Three steps of the real trainer with uneven groups, and what it generated."""
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, answer: Any, **_: Any) -> list[float]:
        # Half of the wrong answers pass too, so that groups are mixed early on.
        found = [float(text[:1] == right[:1]) for text, right in zip(completions, answer, strict=True)]
        seen.append((prompts, [list(ids) for ids in completion_ids], found))
        return found

    def rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        return AllocationProblem(np.zeros((4, 9)), COUNTS, COUNTS)

    rows = [{"prompt": item.prompt, "answer": item.answer, "prompt_id": item.prompt} for item in regime.train]
    trainer = KnapsackGRPOTrainer(
        model=str(regime.base_model()),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        allocator=KnapsackAllocator(rule=rule, min_count=0),
        args=KnapsackGRPOConfig(
            output_dir=str(folder), per_device_train_batch_size=16, num_generations=4, max_steps=3,
            max_completion_length=regime.longest, learning_rate=1e-2, lr_scheduler_type="constant", adam_beta2=0.99,
            group_weighting=weighting, scale_rewards=scale, report_to="none", save_strategy="no", use_cpu=True,
            bf16=False, gradient_checkpointing=False, disable_tqdm=True, trace_file=None,
        ),
    )  # fmt: skip
    trainer.train()
    return seen, trainer.model


@pytest.mark.parametrize(("weighting", "scale"), [("rollout", "group"), ("prompt", "group"), ("rollout", "none")])
def test_three_updates_are_those_of_the_trl_trainer(regime: Regime, tmp_path: Path, weighting: Any, scale: str) -> None:
    seen, trained = trl_run(regime, tmp_path, weighting, scale)
    environment = LanguageModelEnvironment(regime, 0, Loss(weighting, scale="deviation" if scale == "group" else None))
    for group in environment.policy.optimizer.param_groups:
        group["lr"] = 1e-2
    before = [weight.detach().clone() for weight in environment.policy.model.parameters()]
    for prompts, completions, rewards in seen:
        ids = tuple(dict.fromkeys(prompts))
        counts = np.array([prompts.count(prompt_id) for prompt_id in ids])
        for prompt, tokens, reward in zip(prompts, completions, rewards, strict=True):
            environment._untrained[environment._row[prompt], reward].append((environment.step, tokens))
        environment.train(Batch(Outcomes(environment.step, ids, counts, np.array(rewards))))
    assert any(0 < np.mean(rewards) < 1 for _, _, rewards in seen)
    moved = 0.0
    for ours, theirs, start in zip(environment.policy.model.parameters(), trained.parameters(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
        moved = max(moved, float((theirs.detach() - start).abs().max()))
    assert moved > 1e-2


def test_the_guard_against_division_by_zero_is_trl_s() -> None:
    assert EPSILON == TRL_EPSILON


def test_exact_success_rates_are_those_of_sampling(regime: Regime) -> None:
    environment = LanguageModelEnvironment(regime, 1)
    ids = environment.prompt_ids[:8]
    outcomes = environment.generate(RolloutRequest(ids, np.full(8, 2000)))
    exact = environment.success_rates(ids)
    assert exact.max() > 0.05
    error = np.sqrt(exact * (1 - exact) / 2000)
    assert (np.abs(outcomes.pass_rates_P - exact) < 4 * error + 1e-3).all()


def test_answers_end_in_time_and_seeds_repeat(regime: Regime) -> None:
    items = regime.train[:6]
    policy = Policy(regime.base_model(), [i.prompt for i in items], [i.answer for i in items], 1e-3, regime.longest)
    said = policy.sample([0, 3, 5], [3, 1, 4], torch.Generator().manual_seed(0))
    again = policy.sample([0, 3], [3, 1], torch.Generator().manual_seed(0))
    assert [len(tokens) <= regime.longest for tokens in said] == [True] * 8
    assert said[0][:1] == again[0][:1]  # the first number drawn is the first row's in both


def test_hidden_states_tell_prompts_apart_and_know_no_padding(regime: Regime) -> None:
    environment, other = LanguageModelEnvironment(regime, 0), LanguageModelEnvironment(regime, 0)
    ids = sorted(environment.prompt_ids[:12], key=len)
    together = np.concatenate(environment.hidden_states(ids), axis=1)
    alone = np.concatenate([np.concatenate(other.hidden_states([prompt_id]), axis=1) for prompt_id in ids])
    assert together.shape == (12, 33)
    np.testing.assert_allclose(together, alone, atol=0.011)  # confidence is rounded to .01
    assert len(np.unique(together.round(2), axis=0)) == 12


def test_an_epoch_meets_every_prompt_once_and_seeds_repeat(regime: Regime) -> None:
    environment, again = LanguageModelEnvironment(regime, 3), LanguageModelEnvironment(regime, 3)
    taken = [environment.take(10) for _ in range(12)]
    assert taken == [again.take(10) for _ in range(12)]
    assert all(len(set(ids)) == 10 for ids in taken)
    first_epoch = [prompt_id for ids in taken for prompt_id in ids][:64]
    assert sorted(first_epoch) == sorted(environment.prompt_ids)
    with pytest.raises(ValueError, match="smaller pool"):
        environment.take(65)
