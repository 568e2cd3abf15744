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
RUNS = {name: run for name, run in GOLDEN["runs"].items() if run["features"] is None} | GOLDEN["looks"]


@dataclass(frozen=True)
class Given(EnvGroupBuilder):
    """A prompt of the golden file, and what its rollouts will bring."""

    prompt: int
    rewards: tuple[float, ...]
    num_envs: int = GOLDEN["settings"]["average"]

    async def make_envs(self) -> Sequence[Env]:
        return [world.RewardEnv(self.prompt, reward) for reward in self.rewards[: self.num_envs]]


@dataclass
class GivenDataset(RLDataset):
    """With a pool, the candidates of a step come in so many batches."""

    steps: Sequence[Any]
    pool: int

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        step, part = self.steps[index // self.pool], index % self.pool
        given = [Given(i, tuple(rewards)) for i, rewards in zip(step["prompts"], step["rewards"], strict=True)]
        size = len(given) // self.pool
        return given[part * size : (part + 1) * size]

    def __len__(self) -> int:
        return len(self.steps) * self.pool


@chz.chz
class GivenBuilder(RLDatasetBuilder):
    name: str

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        run = RUNS[self.name]
        return GivenDataset(run["steps"], run["pool"]), None


@pytest.mark.parametrize("name", RUNS)
def test_same_plans_and_beliefs_as_every_other_adapter(tmp_path: Path, name: str) -> None:
    settings, expected = GOLDEN["settings"], RUNS[name]
    asks = "log_probs" in expected["steps"][0]
    builder = AllocatedDatasetBuilder(
        inner=GivenBuilder(name=name),
        log_path=str(tmp_path),
        rule=expected["rule"],
        features=expected["features"],
        pool=expected["pool"],
        min_rollouts=settings["min_count"] if expected["pool"] == 1 else 0,
        max_rollouts=settings["max_count"],
        half_life=settings["half_life"],
        prompt_id=lambda given: content_id(GOLDEN["prompts"][given.prompt]),
        prompt_text=lambda given: GOLDEN["prompts"][given.prompt][0]["content"],
        prompt_tokens=lambda given: world.observation(given.prompt),
        ask=asks,
    )
    data, _ = asyncio.run(builder())
    for index, golden in enumerate(expected["steps"]):
        builders = data.get_batch(index)
        if asks:
            answers = dict(zip(golden["prompts"], golden["log_probs"], strict=True))
            groups = [group for group in world.sampled(builders, world.Client(answers.__getitem__)) if group]
        else:
            groups = world.rollouts(builders)
        assert world.counts(builders)[: len(groups)] == [count for count in golden["counts"] if count]
        assert [group.get_total_rewards() for group in groups] == [rewards for rewards in golden["rewards"] if rewards]
    for step, golden in zip(read_trace(tmp_path / "trace.jsonl").steps, expected["steps"], strict=True):
        assert step.plan.counts_P.tolist() == golden["counts"]
        np.testing.assert_allclose(step.plan.success_rates_P, golden["rates"], rtol=1e-6)
        known = np.isfinite(step.plan.pseudo_count_P)
        np.testing.assert_allclose(step.plan.pseudo_count_P[known], np.array(golden["pseudo_counts"])[known], rtol=1e-6)
    beliefs: Any = data.session.allocator.beliefs
    features = data.tracker.look and data.tracker.look(GOLDEN["prompts"], None)
    final = beliefs.forecast([content_id(prompt) for prompt in GOLDEN["prompts"]], len(expected["steps"]), features)
    np.testing.assert_allclose(final.success_rates_P, expected["beliefs"]["rates"], rtol=1e-6)
    np.testing.assert_allclose(final.pseudo_count_P, expected["beliefs"]["pseudo_counts"], rtol=1e-6)
