"""The adapter reproduces the plans and beliefs that all adapters must."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest
import world
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
)

from knapsack_rl import content_id
from knapsack_rl.tinker import AllocatedDatasetBuilder
from knapsack_rl.trace import read_trace

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "same_plans.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Given(EnvGroupBuilder):
    """A prompt of the golden file, and what its rollouts will bring."""

    prompt: int
    rewards: tuple[float, ...]
    num_envs: int = GOLDEN["settings"]["average"]

    async def make_envs(self) -> Sequence[Env]:
        return [world.LuckyEnv(self.prompt, reward) for reward in self.rewards[: self.num_envs]]


@dataclass
class GivenDataset(RLDataset):
    steps: Sequence[Any]

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        step = self.steps[index]
        return [Given(i, tuple(rewards)) for i, rewards in zip(step["prompts"], step["rewards"], strict=True)]

    def __len__(self) -> int:
        return len(self.steps)


@chz.chz
class GivenBuilder(RLDatasetBuilder):
    method: str

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return GivenDataset(GOLDEN["runs"][self.method]["steps"]), None


@pytest.mark.parametrize("method", GOLDEN["runs"])
def test_same_plans_and_beliefs_as_every_other_adapter(tmp_path: Path, method: Any) -> None:
    settings, expected = GOLDEN["settings"], GOLDEN["runs"][method]
    builder = AllocatedDatasetBuilder(
        inner=GivenBuilder(method=method),
        log_path=str(tmp_path),
        allocation=method,
        min_rollouts=settings["min_count"],
        max_rollouts=settings["max_count"],
        half_life=settings["half_life"],
        prompt_id=lambda given: content_id(GOLDEN["prompts"][given.prompt]),
    )
    data, _ = asyncio.run(builder())
    for index, golden in enumerate(expected["steps"]):
        builders = data.get_batch(index)
        assert world.counts(builders) == golden["counts"]
        groups = world.rollouts(builders)
        assert [group.get_total_rewards() for group in groups] == golden["rewards"]
    for step, golden in zip(read_trace(tmp_path / "trace.jsonl").steps, expected["steps"], strict=True):
        np.testing.assert_allclose(step.plan.success_rates_P, golden["rates"], rtol=1e-6)
        known = np.isfinite(step.plan.strength_P)
        np.testing.assert_allclose(step.plan.strength_P[known], np.array(golden["strength"])[known], rtol=1e-6)
    beliefs = data.session.allocator.beliefs
    final = beliefs.forecast([content_id(prompt) for prompt in GOLDEN["prompts"]], len(expected["steps"]))
    np.testing.assert_allclose(final.success_rates_P, expected["beliefs"]["rates"], rtol=1e-6)
    np.testing.assert_allclose(final.strength_P, expected["beliefs"]["strength"], rtol=1e-6)
