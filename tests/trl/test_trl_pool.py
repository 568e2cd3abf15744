"""A pool of candidates: the sampler offers more prompts, the plan chooses among them, the step stays what it was."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from trl.trainer.utils import RepeatSampler

from allocators import allocator_of
from knapsack_rl.trace import Trace, read_trace
from knapsack_rl.trl import KnapsackGRPOConfig
from knapsack_rl.trl.rows import Candidate, distinct
from knapsack_rl.trl.sampler import EpochRepeatSampler, candidate_rows


def train(tmp_path: Path, **given: Any) -> tuple[Any, Trace, list[list[str]]]:
    """A trained run, its trace, and the prompts of each batch that was generated."""
    batches: list[list[str]] = []

    def scored(prompts: list[str], completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        batches.append(prompts)
        return small.reward(completions, answer)

    trainer = small.knapsack(tmp_path, [scored], **given)
    return trainer, read_trace(tmp_path / "trace.jsonl"), batches


@pytest.mark.parametrize("rule", ["calibrated", "beta"])
@pytest.mark.parametrize("pool", [2, 3])
def test_the_plan_chooses_and_the_step_stays_what_it_was(tmp_path: Path, rule: str, pool: int) -> None:
    data = small.dataset(24)
    trainer, trace, batches = train(tmp_path, data=data, rule=rule, pool=pool, max_steps=6)
    text_of_id = {row["prompt_id"]: row["prompt"] for row in data}
    for step, batch in zip(trace.steps, batches, strict=True):
        plan = step.plan
        assert len(set(plan.prompt_ids)) == len(plan.prompt_ids) == 4 * pool
        assert plan.counts_P.sum() == plan.budget == len(batch) == 16
        assert (plan.counts_P == 0).any()
        chosen = zip(plan.prompt_ids, plan.counts_P.tolist(), strict=True)
        assert batch == [text_of_id[prompt_id] for prompt_id, count in chosen for _ in range(count)]
    refused = [float(np.count_nonzero(step.plan.counts_P == 0)) for step in trace.steps]
    assert small.logged(trainer, "knapsack/candidates", "knapsack/refused") == [(4.0 * pool, n) for n in refused]
    assert trainer.args.min_generations == 0
    assert set(trace.texts) == {f"p{i}" for i in range(24)}  # what was refused can be read about too


def test_an_epoch_has_its_steps_and_offers_every_prompt_as_often_as_the_pool_is_large(tmp_path: Path) -> None:
    plain = small.knapsack(tmp_path / "plain", max_steps=-1, num_train_epochs=2)
    trainer, trace, _ = train(tmp_path / "pool", pool=3, max_steps=-1, num_train_epochs=2)
    assert trainer.state.max_steps == plain.state.max_steps == 6
    assert small.logged(trainer, "learning_rate", "epoch") == small.logged(plain, "learning_rate", "epoch")
    for epoch in (trace.steps[:3], trace.steps[3:]):
        offers = Counter(prompt_id for step in epoch for prompt_id in step.plan.prompt_ids)
        assert offers == {f"p{i}": 3 for i in range(12)}
    assert trace.steps[0].plan.prompt_ids != trace.steps[3].plan.prompt_ids


def test_a_prompt_that_is_offered_twice_is_one_candidate(tmp_path: Path) -> None:
    """10 prompts and 8 candidates a step: the second batch of an epoch lies on two passes over the data."""
    _, trace, batches = train(tmp_path, data=small.dataset(10), pool=2, max_steps=4)
    sizes = [len(step.plan.prompt_ids) for step in trace.steps]
    assert sizes[0] == sizes[2] == 8
    assert min(sizes) < 8
    assert all(len(set(step.plan.prompt_ids)) == size for step, size in zip(trace.steps, sizes, strict=True))
    assert [len(batch) for batch in batches] == [16] * 4
    offered = [Candidate(7, "a", "x"), Candidate(3, "a", "x"), Candidate(7, "a", "x"), Candidate(None, "a", "x")]
    assert distinct(offered) == [0, 1, 3]  # one row twice is one candidate; equal rows, and rows of a stream, are not


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_generation": 2, "per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 8},
        {"generation_batch_size": 16, "gradient_accumulation_steps": 2},
        {"shuffle_dataset": False},
        {"pool": 4, "num_generations": 4, "per_device_train_batch_size": 12},
    ],
    ids=str,
)
def test_batching(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer, trace, batches = train(tmp_path, data=small.dataset(24), **{"pool": 2} | changes)
    generations = trainer.state.max_steps / trainer.args.generation_block_steps
    assert trainer.generation_step == len(trace.steps) == len(batches) == generations
    for step in trace.steps:
        assert len(step.plan.prompt_ids) == step.plan.budget // 4 * trainer.args.pool
    assert all(np.isfinite(loss) for (loss,) in small.logged(trainer, "loss"))


def sampler(pool: int, rows: int = 11, group: int = 5, shuffle: bool = True, repeat: int = 2) -> EpochRepeatSampler:
    stock = RepeatSampler(range(rows), group, batch_size=2, repeat_count=repeat, shuffle=shuffle, seed=4)
    return EpochRepeatSampler(stock, pool)


def test_without_a_pool_the_order_is_that_of_trl() -> None:
    stock = RepeatSampler(range(11), 5, batch_size=2, repeat_count=2, shuffle=True, seed=4)
    ours = sampler(1)
    for epoch in range(3):
        ours.epoch = epoch
        assert list(ours) == list(stock)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("pool", [2, 3, 5])
def test_order_with_a_pool(pool: int, shuffle: bool) -> None:
    ours = sampler(pool, shuffle=shuffle)
    candidate = candidate_rows(np.arange(10), 5, pool)
    shares = {2: [0, 0, 0, 1, 1], 3: [0, 0, 1, 1, 2], 5: [0, 1, 2, 3, 4]}[pool]  # the rows of a group, shared out
    assert candidate.tolist() == shares + [pool + share for share in shares]
    orders = []
    for epoch in (0, 1, 7, 1):
        ours.epoch = epoch
        rows = np.array(list(ours)).reshape(5, 2, 10)  # batch, repetition, row
        assert len(list(ours)) == len(ours)
        np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
        first = [int(np.argmax(candidate == i)) for i in range(2 * pool)]
        np.testing.assert_array_equal(rows[:, 0], rows[:, 0][:, np.array(first)[candidate]])
        offered = rows[:, 0][:, first].ravel().tolist()
        passes = [offered[start : start + 11] for start in range(0, len(offered), 11)]
        assert all(sorted(one) == list(range(11)) for one in passes[:-1])
        assert len(passes) == pool
        orders.append(offered)
    assert orders[1] == orders[3]  # a pure function of the epoch
    assert (orders[0] != orders[1]) == shuffle
    assert (passes[0][:8] != passes[1][:8]) == shuffle


@pytest.mark.parametrize(("rule", "rows", "warned"), [("calibrated", 12, 1), ("calibrated", 16, 0), ("uniform", 4, 0)])
def test_a_batch_of_few_prompts_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rule: str, rows: int, warned: int
) -> None:
    """TRL's own defaults make a batch of one prompt: the warning says which batch leaves something to plan."""
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        small.knapsack(tmp_path, train=False, rule=rule, features="none", per_device_train_batch_size=rows)
    said = f"of {rows // 4} prompts (generation_batch_size={rows}, num_generations=4)"
    assert caplog.text.count(said) == caplog.text.count("generation_batch_size=16 or more") == warned


def test_without_a_word_the_config_is_the_rule_that_did_best(tmp_path: Path) -> None:
    config = KnapsackGRPOConfig(**small.settings(tmp_path, num_generations=8))
    assert (config.rule, config.features) == ("calibrated", "hidden_states")
    assert (config.pool, config.min_generations, config.group_weighting) == (4, 0, "prompt")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rule": "paper"}, (1, 2, "rollout")),
        ({"rule": "uniform"}, (1, 2, "rollout")),
        ({"min_generations": 2}, (1, 2, "prompt")),
        ({"pool": 1}, (1, 2, "prompt")),
        ({"num_generations": 2}, (2, 0, "prompt")),
        ({"group_weighting": "rollout"}, (4, 0, "rollout")),
    ],
)
def test_defaults_follow_what_is_said(tmp_path: Path, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = KnapsackGRPOConfig(**small.settings(tmp_path, **changes))
    assert (config.pool, config.min_generations, config.group_weighting) == expected


@pytest.mark.parametrize(
    ("prompts", "arguments", "pool"),
    [(16, {}, 4), (12, {}, 3), (7, {}, 1), (16, {"allocator": allocator_of("uniform")}, 1)],
)
def test_a_default_pool_fits_the_data_and_asks_nothing_of_other_allocators(
    tmp_path: Path, prompts: int, arguments: dict[str, Any], pool: int, caplog: pytest.LogCaptureFixture
) -> None:
    unsaid = {"rule": "calibrated", "pool": None, "group_weighting": None}
    data = small.dataset(prompts)
    trainer = small.knapsack(tmp_path, data=data, arguments=arguments, max_steps=2, **unsaid)
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert (trainer.args.pool, trainer.args.min_generations) == (pool, 0 if pool > 1 else 2)
    assert [len(step.plan.prompt_ids) for step in steps] == [4 * pool] * 2
    assert [step.plan.counts_P.sum() for step in steps] == [16, 16]
    said = f"pool={pool} instead of 4: the training dataset has {prompts} prompts"
    assert caplog.text.count(said) == (pool < 4 and not arguments)
    if not arguments:
        half_life = trainer.session.allocator.beliefs.half_life
        assert half_life == 4 * max(prompts // 4, 1)  # passes of a run without a pool, whatever the pool


def test_a_stream_gets_no_pool_unless_one_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unsaid = {"rule": "calibrated", "pool": None}
    trainer = small.knapsack(tmp_path, data=small.dataset().to_iterable_dataset(), train=False, **unsaid)
    assert "pool=1 instead of 4: the training dataset is a stream" in caplog.text
    assert (trainer.args.pool, trainer.args.min_generations) == (1, 2)
