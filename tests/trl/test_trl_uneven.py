"""Uneven groups through a real TRL run: what is generated, scored, learned, logged and shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from datasets import Dataset, IterableDataset

from knapsack_rl import AllocationProblem, KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackMixin
from knapsack_rl.trl.advantages import grpo_advantages

COUNTS = [2, 9, 0, 5]


def fixed(*counts: int) -> KnapsackAllocator:
    """The real allocator with a rule that leaves no choice."""

    def rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        return AllocationProblem(np.zeros((len(counts), max(counts))), np.array(counts), np.array(counts))

    return KnapsackAllocator(rule=rule, min_count=0)


class Scored:
    """A reward function that remembers what it was asked to score."""

    __name__ = "scored"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.rewards: list[list[float]] = []

    def __call__(self, prompts: list[Any], completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        self.batches.append([small.text_of(p) for p in prompts])
        self.rewards.append(small.reward(completions, answer))
        return self.rewards[-1]


def run(tmp_path: Path, counts: Any = COUNTS, **given: Any) -> tuple[Any, Scored]:
    scored = Scored()
    arguments = {"allocator": fixed(*counts), **given.pop("arguments", {})}
    return small.knapsack(tmp_path, [scored], arguments=arguments, **given), scored


def sizes(batch: list[str]) -> list[int]:
    """Lengths of the runs of equal prompts."""
    return list(Counter(batch).values())


def test_every_prompt_is_generated_as_often_as_planned(tmp_path: Path) -> None:
    trainer, scored = run(tmp_path)
    assert [sizes(batch) for batch in scored.batches] == [[2, 9, 5]] * 3
    trace = read_trace(tmp_path / "trace.jsonl")
    assert [step.plan.counts_P.tolist() for step in trace.steps] == [COUNTS] * 3
    for step, rewards in zip(trace.steps, scored.rewards, strict=True):
        assert step.outcomes.rewards_PG.tolist() == rewards
    assert trainer.generation_step == 3
    assert trace.ended == "finished"


@pytest.mark.parametrize("chat", [False, True])
def test_conversations_and_plain_prompts(tmp_path: Path, chat: bool) -> None:
    trainer, scored = run(tmp_path, data=small.dataset(chat=chat))
    assert all(sizes(batch) == [2, 9, 5] for batch in scored.batches)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("weighting", ["rollout", "prompt"])
def test_advantages_that_are_trained_on_and_logged(tmp_path: Path, scale: str, weighting: str) -> None:
    trainer, scored = run(tmp_path, scale_rewards=scale, group_weighting=weighting, max_steps=1)
    rows = torch.tensor(scored.rewards[-1])[:, None]
    expected = grpo_advantages(rows, torch.ones(1), np.array(COUNTS), scale).advantages_PG
    if weighting == "prompt":  # 16 rollouts in 3 groups that are there
        expected = expected * torch.tensor([16 / 3 / n for n in COUNTS for _ in range(n)])
    assert expected.abs().sum() > 0
    torch.testing.assert_close(torch.tensor(list(trainer._logs["advantages"])), expected)
    buffered = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs])
    torch.testing.assert_close(buffered.sort().values, expected.sort().values)  # TRL shuffles the batch


def test_metrics_count_groups_that_are_there(tmp_path: Path) -> None:
    trainer, scored = run(tmp_path, max_steps=1)
    groups = np.split(np.array(scored.rewards[0]), np.cumsum([2, 9]))
    dead = [len(set(group)) == 1 for group in groups]
    names = ("frac_reward_zero_std", "knapsack/frac_prompts_mixed", "knapsack/frac_rollouts_mixed", "reward")
    mixed_rollouts = sum(len(g) for g, d in zip(groups, dead, strict=True) if not d)
    expected = (np.mean(dead), 1 - np.mean(dead), mixed_rollouts / 16, np.mean(scored.rewards[0]))
    assert small.logged(trainer, *names)[0] == pytest.approx(expected)


def test_completions_table_shows_the_uneven_batch(tmp_path: Path) -> None:
    trainer, scored = run(tmp_path, max_steps=1, log_completions=True)
    table = pd.read_parquet(next((tmp_path / "completions").glob("*.parquet")))
    assert table["prompt"].tolist() == scored.batches[0]
    assert table["advantage"].tolist() == list(trainer._logs["advantages"])
    assert table["scored"].tolist() == scored.rewards[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_generation": 2, "per_device_train_batch_size": 8},
        {"steps_per_generation": 2, "per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 4},
        {"generation_batch_size": 16, "gradient_accumulation_steps": 2},
        {"mask_truncated_completions": True},
        {"loss_type": "cispo"},
    ],
    ids=str,
)
def test_batching(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer, scored = run(tmp_path, **changes)
    assert all(sizes(batch) == [2, 9, 5] for batch in scored.batches)
    assert trainer.generation_step == len(scored.batches)
    assert all(np.isfinite(loss) for (loss,) in small.logged(trainer, "loss"))


def test_evaluation_stays_uniform_and_teaches_the_beliefs_nothing(tmp_path: Path) -> None:
    trainer, scored = run(
        tmp_path, arguments={"eval_dataset": small.dataset(4)}, eval_strategy="steps", eval_steps=3,
        per_device_eval_batch_size=4, num_generations_eval=2,
    )  # fmt: skip
    assert [sizes(batch) for batch in scored.batches] == [[2, 9, 5]] * 3 + [[2, 2]] * 2
    assert trainer.generation_step == 3


async def slow(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    return small.reward(completions, answer)


def silent(completions: list[Any], **_: Any) -> list[float | None]:
    return [None for _ in completions]


def test_several_reward_functions_with_weights(tmp_path: Path) -> None:
    scored = Scored()
    small.knapsack(
        tmp_path, [scored, slow, silent], arguments={"allocator": fixed(*COUNTS)}, reward_weights=[0.75, 0.25, 9.0]
    )
    for step, rewards in zip(read_trace(tmp_path / "trace.jsonl").steps, scored.rewards, strict=True):
        assert step.outcomes.rewards_PG.tolist() == pytest.approx(rewards)  # .75 r + .25 r, and nothing for the silent


def test_no_answer_is_neither_success_nor_failure(tmp_path: Path) -> None:
    trainer = small.knapsack(tmp_path, [silent], max_steps=1)
    step = read_trace(tmp_path / "trace.jsonl").steps[0]
    assert step.outcomes.attempts_P.tolist() == [0, 0, 0, 0]
    assert not trainer.allocator.beliefs.forecast(step.plan.prompt_ids, 1).seen_P.any()
    assert small.logged(trainer, "grad_norm") == [(0.0,)]


def test_infinite_reward_is_refused_by_name_and_believed_by_nobody(tmp_path: Path) -> None:
    def broken(completions: list[Any], **_: Any) -> list[float]:
        return [float("inf")] * len(completions)

    trainer = small.knapsack(tmp_path, [broken], train=False)
    with pytest.raises(ValueError, match=r"prompt 'p\d+' got the reward inf"):
        trainer.train()
    assert not trainer.allocator.beliefs.forecast([f"p{i}" for i in range(12)], 1).seen_P.any()


def test_streams(tmp_path: Path) -> None:
    rows = list(small.dataset())
    trainer, scored = run(tmp_path, data=IterableDataset.from_generator(lambda: iter(rows)))
    assert all(sizes(batch) == [2, 9, 5] for batch in scored.batches)
    assert trainer.generation_step == 3


def test_rollout_function(tmp_path: Path) -> None:
    """TRL's own hook for custom generation gets the uneven rows and may write into them."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        tokens = trainer.processing_class(prompts)["input_ids"]
        answers = [[4 + i % 8, 1] for i in range(len(prompts))]
        return {"prompt_ids": tokens, "completion_ids": answers, "logprobs": [[-1.0, -1.0] for _ in prompts],
                "row": list(range(len(prompts)))}  # fmt: skip

    seen = []

    def reward(completions: list[Any], answer: list[str], row: list[int], **_: Any) -> list[float]:
        seen.append(row)
        return small.reward(completions, answer)

    data = small.dataset().add_column("row", [0] * 12)
    trainer = small.knapsack(tmp_path, [reward], data, arguments={"allocator": fixed(*COUNTS), "rollout_func": rollout})
    assert seen == [list(range(16))] * 3
    assert trainer.state.global_step == 3


def test_mixin_serves_other_trainers_of_trl(tmp_path: Path) -> None:
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    from knapsack_rl.trl import KnapsackGRPOConfig

    class Config(KnapsackGRPOConfig, GMPOConfig):
        pass

    assert Config(**small.settings(tmp_path)).epsilon == GMPOConfig(**small.settings(tmp_path)).epsilon == 0.4

    class Trainer(KnapsackMixin, GMPOTrainer):
        pass

    scored = Scored()
    trainer = small.build(Config, Trainer, tmp_path, [scored], None, {"allocator": fixed(*COUNTS)}, {})
    trainer.train()
    assert all(sizes(batch) == [2, 9, 5] for batch in scored.batches)
    assert all(np.isfinite(loss) for (loss,) in small.logged(trainer, "loss"))


def test_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer, scored = run(tmp_path, arguments={"peft_config": adapters})
    assert all(sizes(batch) == [2, 9, 5] for batch in scored.batches)
    assert trainer.state.global_step == 3


def test_knapsack_learns_and_shifts_the_budget(tmp_path: Path) -> None:
    """Prompts that nothing solves and prompts that sometimes work do not end with the same counts."""
    trainer = small.knapsack(tmp_path, max_steps=24, half_life=100.0, learning_rate=1e-5)
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert all(step.plan.counts_P.sum() == 16 and step.plan.counts_P.min() >= 2 for step in steps)
    late: dict[str, list[int]] = {}
    for step in steps[-6:]:
        for prompt_id, count in zip(step.plan.prompt_ids, step.plan.counts_P, strict=True):
            late.setdefault(prompt_id, []).append(int(count))
    hopeless = np.mean([n for p in ("p0", "p6") for n in late[p]])  # these accept no letter at all
    mixed = np.mean([n for p in ("p3", "p4", "p5") for n in late[p]])
    assert hopeless < mixed
    assert trainer.state.global_step == 24


def test_one_prompt_twice_in_a_batch_is_two_groups_with_one_belief(tmp_path: Path) -> None:
    rows = [{"prompt": "aa=", "answer": "abcd"}] * 4
    trainer = small.knapsack(tmp_path, data=Dataset.from_list(rows), max_steps=2)
    step = read_trace(tmp_path / "trace.jsonl").steps[-1]
    assert len(set(step.plan.prompt_ids)) == 1
    assert len(set(step.plan.success_rates_P)) == 1
    assert len(trainer.allocator.beliefs.table) == 1
