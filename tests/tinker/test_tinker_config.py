"""Configs, and builders of other sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz
import pytest
import world
from tinker_cookbook.rl import train as train_loop
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
)
from tinker_cookbook.utils.ml_log import dump_config

from knapsack_rl import AllocationConfig
from knapsack_rl.config import FIELDS
from knapsack_rl.tinker import ALIASES, AllocatedDataset, AllocatedDatasetBuilder, allocated
from knapsack_rl.tinker.builders import group_size, resized
from knapsack_rl.tinker.tasks import SIZE_FIELDS
from knapsack_rl.trace import read_trace


class Plain(EnvGroupBuilder):
    """Not a dataclass, as many builders of the cookbook."""

    def __init__(self) -> None:
        self.group_size = 4

    async def make_envs(self) -> Sequence[Env]:
        return []


class Fixed(EnvGroupBuilder):
    async def make_envs(self) -> Sequence[Env]:
        return []


def test_builders_are_resized_in_a_copy() -> None:
    for builder in (Plain(), world.SeededBuilder(0, 0), world.sums(1, 0)):
        other = resized(builder, 7)
        assert (group_size(builder), group_size(other), type(other)) == (4, 7, type(builder))
    with pytest.raises(ValueError, match="Fixed makes a fixed number of environments: give it a field num_envs"):
        resized(Fixed(), 3)


def test_questions_are_in_the_trace(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, world.Dataset(builder=world.sums))
    builders = data.get_batch(0)
    for builder in builders:
        builder.log.write(builder.share.group._replace(rewards=[0.0, 1.0], tokens=[1, 1]))
    data.tracker.collect()
    assert sorted(read_trace(tmp_path / "trace.jsonl").texts.values())[:2] == ["0 + 0?", "1 + 1?"]


@chz.chz
class Inner(RLDatasetBuilder):
    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return world.Dataset(batches=2), world.Dataset(batches=1)


def config(path: Path, **changes: Any) -> train_loop.Config:
    return train_loop.Config(
        learning_rate=1e-4,
        dataset_builder=Inner(),
        model_name="Qwen/Qwen3-8B",
        recipe_name="test",
        max_tokens=8,
        log_path=str(path),
        **changes,
    )


def test_a_config_is_allocated_in_one_call(tmp_path: Path) -> None:
    found = allocated(config(tmp_path, max_steps=3), epochs=2, max_rollouts=6, success_threshold=0.5)
    assert found.log_path == str(tmp_path)
    data, test = asyncio.run(found.dataset_builder())
    assert isinstance(data, AllocatedDataset)
    assert isinstance(test, world.Dataset)  # evaluation stays as it was
    assert (len(data), data.tracker.steps, data.session.config.success_threshold) == (4, 3, 0.5)
    assert data.session.allocator.max_count == 6
    for index in range(3):
        world.rollouts(data.get_batch(index))
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.ended == "finished"
    assert trace.run["engine"] == "tinker"
    assert trace.run["settings"]["epochs"] == 2
    dump_config(found)  # the cookbook writes it to its log


@chz.chz
class InBatches(RLDatasetBuilder):
    batches: int

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return world.Dataset(batches=self.batches), None


def built(path: Path, **options: Any) -> Any:
    return asyncio.run(allocated(config(path), **options).dataset_builder())[0]


def test_a_pool_and_features_in_one_call(tmp_path: Path) -> None:
    data = built(tmp_path, epochs=4, features="text", pool=2, prompt_text=lambda one: f"p {one.prompt}")
    assert len(data) == 8
    assert data.session.allocator.min_count == 0
    assert data.session.allocator.beliefs.half_life == 8.0  # 4 passes of 2 steps, as without a pool
    data.get_batch(0)
    assert data.session.open_plans[0].features.features_P_F.any(axis=1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": "text", "rule": "beta"}, "features='text' has no effect under rule='beta'"),
        ({"features": "no-such.npz"}, r"no-such\.npz.*`knapsack-rl features` writes"),
        ({"rule": "posterior"}, "there is no rule 'posterior'"),
        ({"pool": 0}, "pool is 0"),
        ({"pool": 2, "rule": "uniform"}, "'uniform' does not choose among a pool"),
        ({"pool": 3}, "pool is 3, and the data set has 2 batches"),
        ({"pool": 2, "min_rollouts": 2}, "min_rollouts is 2 with pool=2"),
        ({"min_rollouts": 1}, "min_rollouts is 1: a group of one has no gradient"),
        ({"max_rollouts": 3}, r"num_envs is 4: .* between min_rollouts \(0\) and max_rollouts \(3\)"),
    ],
)
def test_bad_values_are_named_as_they_were_given(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(tmp_path, **wrong)


def test_every_core_field_has_one_name(tmp_path: Path) -> None:
    """Every field of `AllocationConfig` is set by one here, and has its default; but None weighs by rollout."""
    own, plain = AllocatedDatasetBuilder(inner=Inner(), log_path=str(tmp_path)), AllocationConfig
    values = {"rule": "beta", "pool": 2, "min_count": 0, "max_count": 9, "half_life": 3.0, "success_threshold": 0.5}
    values |= {"weighting": "prompt", "min_group": 3, "budget": "adaptive", "step_cost": 0.5, "least_budget": 0.25}
    values |= {"token_decay": 0.5, "token_every": 3}
    assert set(ALIASES) <= set(FIELDS)
    for core in FIELDS:
        name = ALIASES.get(core, core)
        if core == "average":
            assert name in SIZE_FIELDS
        else:
            assert getattr(own, name) == getattr(plain, core)
            found = built(tmp_path, **{name: values[core]}).session.config
            assert getattr(found, core) == values[core]
    assert own.allocation(world.Dataset()).weighting == "rollout"
    assert own.allocation(world.Dataset()).average == world.SIZE


@pytest.mark.parametrize(
    ("batches", "options", "expected"),
    [
        (8, {}, (4, 0)),
        (2, {}, (2, 0)),
        (1, {}, (1, 2)),
        (8, {"min_rollouts": 2}, (1, 2)),
        (8, {"rule": "paper"}, (1, 2)),
        (8, {"pool": 1}, (1, 2)),
    ],
)
def test_the_default_pool(tmp_path: Path, batches: int, options: dict[str, Any], expected: tuple[int, int]) -> None:
    found = allocated(chz.replace(config(tmp_path), dataset_builder=InBatches(batches=batches)), **options)
    data, _ = asyncio.run(found.dataset_builder())
    assert (data.pool, data.session.allocator.min_count) == expected
    world.rollouts(data.get_batch(0))
    assert len(read_trace(tmp_path / "trace.jsonl").steps[0].plan.prompt_ids) == expected[0] * world.GROUPS


def test_passes_that_the_cookbook_would_make_are_ours_to_make(tmp_path: Path) -> None:
    if not hasattr(config(tmp_path), "num_epochs"):
        pytest.skip("this version of the cookbook makes one pass")
    found = allocated(config(tmp_path, num_epochs=3))
    assert found.num_epochs == 1
    assert len(asyncio.run(found.dataset_builder())[0]) == 6


def test_an_allocator_of_your_own(tmp_path: Path) -> None:
    found = allocated(config(tmp_path), make_allocator=lambda: AllocationConfig(rule="uniform").make_allocator())
    data = asyncio.run(found.dataset_builder())[0]
    assert data.session.allocator.rule.__name__ == "uniform_rule"
    assert data.pool == 1


def test_loops_that_wait_for_a_number_of_groups_leave_no_prompt_out(tmp_path: Path) -> None:
    waiting = train_loop.AsyncConfig(max_steps_off_policy=1, groups_per_batch=8)
    with pytest.raises(ValueError, match="this loop waits for groups_per_batch groups: use min_rollouts=2"):
        allocated(config(tmp_path, async_config=waiting), min_rollouts=0)
    with pytest.raises(ValueError, match="a pool leaves prompts out of a batch, .* use pool=1"):
        allocated(config(tmp_path, async_config=waiting), pool=2)
    for options in ({}, {"pool": None}, {"min_rollouts": 3}):
        data = asyncio.run(allocated(config(tmp_path, async_config=waiting), **options).dataset_builder())[0]
        assert (data.pool, data.session.allocator.min_count) == (1, options.get("min_rollouts", 2))
    assert allocated(config(tmp_path), min_rollouts=0)
