"""What the cookbook is given: configs, and builders of other sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
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

from knapsack_rl import make_allocator
from knapsack_rl.tinker import AllocatedDataset, allocated
from knapsack_rl.tinker.builders import group_size, prompt_of, resized
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
    for builder in (Plain(), world.LuckyBuilder(0, 0), world.sums(1, 0)):
        other = resized(builder, 7)
        assert (group_size(builder), group_size(other), type(other)) == (4, 7, type(builder))
    with pytest.raises(ValueError, match="Fixed makes a fixed number of environments: give it a field num_envs"):
        resized(Fixed(), 3)


def test_prompts_are_named() -> None:
    assert prompt_of(world.LuckyBuilder(3, 0), None) == ("p3", None)
    assert prompt_of(world.LuckyBuilder(3, 0), None, lambda builder: f"{builder.prompt}?") == ("p3", "3?")
    assert prompt_of(world.LuckyBuilder(3, 0), lambda builder: f"q{builder.prompt}") == ("q3", None)
    name, text = prompt_of(world.sums(4, 0), None)
    assert text == "4 + 4?"
    assert name == prompt_of(replace(world.sums(4, 9), num_envs=2), None)[0] != prompt_of(world.sums(5, 0), None)[0]
    assert name != prompt_of(replace(world.sums(4, 0), dataset_name="other"), None)[0]
    with pytest.raises(ValueError, match="Plain does not say which prompt it is for"):
        prompt_of(Plain(), None)


def test_questions_are_in_the_trace(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, world.Dataset(builder=world.sums))
    builders = data.get_batch(0)
    for builder in builders:
        builder.journal.write(builder.group._replace(rewards=[0.0, 1.0], tokens=[1, 1]))
    data.collect()
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
    assert (len(data), data.last, data.ledger.success_threshold) == (4, 2, 0.5)
    assert data.session.allocator.max_count == 6
    for index in range(3):
        world.rollouts(data.get_batch(index))
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.ended == "finished"
    assert trace.run["engine"] == "tinker"
    assert trace.run["settings"]["epochs"] == 2
    dump_config(found)  # the cookbook writes it to its log


def test_a_pool_and_features_in_one_call(tmp_path: Path) -> None:
    options = {"allocation": "calibrated", "features": "text", "pool": 2, "prompt_text": lambda one: f"p {one.prompt}"}
    data, _ = asyncio.run(allocated(config(tmp_path), epochs=4, **options).dataset_builder())
    assert len(data) == 8
    assert data.session.allocator.min_count == 0
    assert data.session.allocator.beliefs.half_life == 4.0  # passes, each of which is one step
    assert data.session.allocator.beliefs.features is data.features
    data.get_batch(0)
    assert data.features(["p3"]).any()
    for wrong, said in (
        ({"features": "text"}, "'posterior' has no use for features"),
        ({"pool": 0}, "pool is 0"),
        ({"pool": 2, "allocation": "uniform"}, "'uniform' does not choose among a pool"),
        ({"pool": 3}, "pool is 3, and the data set has 2 batches"),
    ):
        with pytest.raises(ValueError, match=said):
            asyncio.run(allocated(config(tmp_path), **wrong).dataset_builder())


def test_passes_that_the_cookbook_would_make_are_ours_to_make(tmp_path: Path) -> None:
    if not hasattr(config(tmp_path), "num_epochs"):
        pytest.skip("this version of the cookbook makes one pass")
    found = allocated(config(tmp_path, num_epochs=3))
    assert found.num_epochs == 1
    assert len(asyncio.run(found.dataset_builder())[0]) == 6


def test_an_allocator_of_your_own(tmp_path: Path) -> None:
    found = allocated(config(tmp_path), make_allocator=lambda: make_allocator("uniform"))
    data = asyncio.run(found.dataset_builder())[0]
    assert data.session.allocator.rule.__name__ == "uniform_rule"


def test_loops_that_wait_for_a_number_of_groups_leave_no_prompt_out(tmp_path: Path) -> None:
    waiting = train_loop.AsyncConfig(max_steps_off_policy=1, groups_per_batch=8)
    with pytest.raises(ValueError, match="this loop waits for groups_per_batch groups"):
        allocated(config(tmp_path, async_config=waiting), min_rollouts=0)
    with pytest.raises(ValueError, match="a pool leaves prompts out of a batch, .* use pool=1"):
        allocated(config(tmp_path, async_config=waiting), pool=2)
    assert allocated(config(tmp_path), min_rollouts=0)
