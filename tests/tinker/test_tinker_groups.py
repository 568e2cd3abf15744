"""Groups as the cookbook's loops run them, without a model: uneven, late, run again, short, failing."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.rollout_strategy import MinViableGroup
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    StopReason,
    Trajectory,
    Transition,
)

from knapsack_rl.trace import read_trace


def test_groups_are_as_large_as_planned_and_spend_the_budget(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, world.Dataset(batches=6))
    sizes = []
    for index in range(len(data)):
        builders = data.get_batch(index)
        groups = world.rollouts(builders)
        assert [len(group.trajectories_G) for group in groups] == world.counts(builders)
        sizes.append(world.counts(builders))
        assert sum(sizes[-1]) == world.GROUPS * world.SIZE
    assert sizes[0] == [world.SIZE] * world.GROUPS  # before any outcome
    assert len(set(sizes[-1])) > 1  # uneven
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.counts_P.tolist() for step in steps] == sizes
    assert [step.outcomes.counts_P.tolist() for step in steps] == sizes
    wanted = [
        world.seeded_reward(int(name[1:]), step.plan.step, i)
        for step in steps
        for name, count in zip(step.plan.prompt_ids, step.plan.counts_P, strict=True)
        for i in range(count)
    ]
    assert np.concatenate([step.outcomes.rewards_PG for step in steps]).tolist() == wanted
    assert read_trace(tmp_path / "trace.jsonl").ended == "finished"
    np.testing.assert_array_equal(steps[0].outcomes.tokens_PG, 3)


def test_a_pool_is_chosen_from_and_the_rollouts_stay(tmp_path: Path) -> None:
    inner = world.Dataset(batches=6)
    data = world.dataset(tmp_path, inner, rule="calibrated", pool=2, epochs=3)
    assert len(data) == 18  # as many steps as without a pool
    for index in range(len(data)):
        builders = data.get_batch(index)
        assert inner.asked[-2:] == [2 * index % 6, (2 * index + 1) % 6]
        groups = world.rollouts(builders)
        assert [len(group.trajectories_G) for group in groups] == world.counts(builders)
        assert sum(world.counts(builders)) == world.GROUPS * world.SIZE
        assert min(world.counts(builders)) >= 2
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.ended == "finished"
    chosen = np.array([step.plan.counts_P for step in trace.steps])
    assert chosen.shape == (18, 2 * world.GROUPS)
    assert (chosen == 0).any(axis=1).sum() > 9
    assert chosen[6:, 4:12].sum() > 0.6 * chosen[6:].sum()  # neither near 0 nor near 1
    assert world.evidence(data) == chosen.sum()


def test_a_pool_larger_than_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pool is 9, and the data set has 8 batches"):
        world.dataset(tmp_path, pool=9)


def test_prompts_without_a_text_have_no_features_of_it(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, rule="calibrated", features="text")
    with pytest.raises(ValueError, match="SeededBuilder does not say what its prompt is: pass prompt_text="):
        data.get_batch(0)


def test_the_metrics_of_a_batch_come_with_the_group_that_completes_it(tmp_path: Path) -> None:
    data = world.dataset(tmp_path)
    groups = world.rollouts(data.get_batch(0), order=[3, 0, 1, 2, 7, 6, 5, 4])
    metrics = [one for group in groups for one in group.metrics_G if one]
    assert len(metrics) == 1
    assert groups[4].metrics_G[0] is metrics[0]
    assert metrics[0]["knapsack/count_mean"] == world.SIZE
    assert world.finite(metrics[0])


def test_groups_may_finish_in_any_order_and_batches_may_overlap(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, world.Dataset(batches=3))
    first, second = data.get_batch(0), data.get_batch(1)  # asked for before any group of the first has come back
    world.rollouts(second)
    assert data.tracker.learned == 0
    assert world.evidence(data) == 0
    world.rollouts(first, order=[7, 2, 3, 1, 0, 6, 4, 5])
    assert data.tracker.learned == 2
    ordered = world.dataset(tmp_path / "ordered", world.Dataset(batches=3))
    batches = [ordered.get_batch(0), ordered.get_batch(1)]
    for batch in batches:
        world.rollouts(batch)
    assert world.rates(data) == world.rates(ordered)
    assert world.record_of(tmp_path) == world.record_of(tmp_path / "ordered")


def test_a_group_that_is_run_again_counts_again_and_under_its_own_step(tmp_path: Path) -> None:
    # The asynchronous loop puts a group that is too stale to train on back into its queue: these are other rollouts.
    data = world.dataset(tmp_path)
    first = data.get_batch(0)
    world.rollouts(first)
    second = data.get_batch(1)
    before = world.evidence(data)
    world.rollouts([first[5]])
    assert world.evidence(data) == before + first[5].count
    assert data.session.allocator.beliefs.table["step"][5] == 0
    world.rollouts([*second[:3], second[0]])  # and one of a batch that is still open
    world.rollouts(second[3:])
    assert world.evidence(data) == before + first[5].count + sum(world.counts(second)) + second[0].count
    assert [step.plan.step for step in read_trace(tmp_path / "trace.jsonl").steps] == [0, 1]


@dataclass
class Broken(EnvGroupBuilder):
    """A group that fails, in one of several ways."""

    prompt: int
    batch: int
    num_envs: int = world.SIZE
    how: str = "make_envs"
    cleaned: list[int] = field(default_factory=list)

    @property
    def prompt_id(self) -> str:
        return f"p{self.prompt}"

    async def make_envs(self) -> Sequence[Env]:
        if self.prompt == 3 and self.how == "make_envs":
            raise RuntimeError("no sandbox")
        size = self.num_envs - (self.prompt == 3 and self.how == "size")
        return [world.RewardEnv(self.prompt, np.inf if self.how == "inf" and self.prompt == 3 else 1.0)] * size

    async def compute_group_rewards(
        self, trajectory_group: Any, env_group: Any
    ) -> list[tuple[float, dict[str, float]]]:
        if self.prompt == 3 and self.how == "reward":
            raise RuntimeError("no grader")
        return [(0.0, {"graded": 1.0}) for _ in trajectory_group]

    async def cleanup(self) -> None:
        self.cleaned.append(self.prompt)

    def logging_tags(self) -> list[str]:
        return ["broken"]


@pytest.mark.parametrize("how", ["make_envs", "reward", "size", "inf"])
def test_a_group_that_fails_is_no_evidence_and_holds_nothing_up(tmp_path: Path, how: str) -> None:
    data = world.dataset(tmp_path, world.Dataset(builder=lambda prompt, batch: Broken(prompt, batch, how=how)))
    builders = data.get_batch(0)
    with pytest.raises((RuntimeError, ValueError)) as failure:
        world.rollouts(builders[3:4])
    if how == "size":
        assert "Broken made 3 environments where 4 were planned" in str(failure.value)
    if how == "inf":
        assert "prompt 'p3' of Broken got the reward inf from step" in str(failure.value)
    assert builders[3].share.inner.cleaned == [3]
    assert builders[3].logging_tags() == ["broken"]
    world.rollouts(builders[:3] + builders[4:])
    assert data.tracker.learned == 1
    step = read_trace(tmp_path / "trace.jsonl").steps[0]
    assert step.outcomes.counts_P.tolist() == [4, 4, 4, 0, 4, 4, 4, 4]
    assert not data.get_batch(2 - 1)[3].share.group.rewards
    assert world.evidence(data) == 28


def test_a_group_may_come_back_short(tmp_path: Path) -> None:
    calls = iter(range(100))

    async def unreliable(prompt: Any, stop: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("lost")
        return await world.policy(prompt, stop)

    data = world.dataset(tmp_path, world.Dataset())
    builders = data.get_batch(0)
    strategy = MinViableGroup(min_successful=2, max_retries=0)
    asyncio.run(do_group_rollout(builders[0], unreliable, strategy=strategy))
    world.rollouts(builders[1:])
    got = read_trace(tmp_path / "trace.jsonl").steps[0].outcomes.counts_P
    assert got.tolist() == [3, 4, 4, 4, 4, 4, 4, 4]
    assert world.evidence(data) == got.sum()


def test_groups_may_run_in_other_processes(tmp_path: Path) -> None:
    data = world.dataset(tmp_path)
    builders = data.get_batch(0)
    assert pickle.loads(pickle.dumps(builders[0])).tracker is None
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(in_another_process, builders))
    assert data.tracker.learned == 0
    data.get_batch(1)
    assert data.tracker.learned == 1
    here = world.train(tmp_path / "here", range(1))
    assert world.rates(data) == world.rates(here)


def test_groups_may_run_in_threads(tmp_path: Path) -> None:
    data, ordered = world.dataset(tmp_path / "threads"), world.dataset(tmp_path / "ordered")
    for start in (0, 2, 4):
        batches = [data.get_batch(start), data.get_batch(start + 1)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda builder: world.rollouts([builder]), [*batches[1], *batches[0]]))
        for batch in [ordered.get_batch(start), ordered.get_batch(start + 1)]:
            world.rollouts(batch)
    assert data.tracker.learned == 6
    assert world.evidence(data) == 6 * world.GROUPS * world.SIZE
    assert world.rates(data) == world.rates(ordered)
    assert world.record_of(tmp_path / "threads") == world.record_of(tmp_path / "ordered")


def test_a_prompt_may_occur_twice_in_a_batch(tmp_path: Path) -> None:
    inner = world.Dataset(builder=lambda prompt, batch: Broken(prompt // 2, batch, how="reward"))
    data = world.dataset(tmp_path, inner)
    builders = data.get_batch(0)  # prompts 0, 0, 1, 1, 2, 2, 3, 3, of which 3 fails
    for builder in builders[6:]:
        with pytest.raises(RuntimeError):
            world.rollouts([builder])
    world.rollouts(builders[:6])
    assert data.tracker.learned == 1
    step = read_trace(tmp_path / "trace.jsonl").steps[0]
    assert step.outcomes.counts_P.tolist() == [4, 4, 4, 4, 4, 4, 0, 0]
    assert world.evidence(data) == 24


def in_another_process(builder: EnvGroupBuilder) -> int:
    return len(world.rollouts([builder]))


def test_rewards_are_observed_as_the_cookbook_will_change_them(tmp_path: Path) -> None:
    policy = TerminationRewardPolicy(zero_reward_on_limit=True, limit_stop_reasons=frozenset({StopReason.MAX_TURNS}))
    builder = world.dataset(tmp_path, termination=policy).get_batch(0)[0]

    def ended(reason: str | None) -> Trajectory:
        tokens = asyncio.run(world.policy(world.observation(0), None))
        return Trajectory([Transition(world.observation(0), tokens, 1.0, True)], world.observation(0), reason)

    assert builder._total(ended(None), 0.5) == 1.5
    assert builder._total(ended(StopReason.MAX_TURNS), 0.5) == 0.0
    assert builder._total(ended(StopReason.MAX_TURNS), -3.0) == -2.0


def test_several_epochs(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, world.Dataset(batches=2), epochs=3, max_steps=5)
    assert len(data) == 6
    for index in range(5):
        world.rollouts(data.get_batch(index))
    assert data.inner.asked == [0, 1, 0, 1, 0]
    assert read_trace(tmp_path / "trace.jsonl").ended == "finished"


def test_prompts_that_are_planned_nothing_are_left_out(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, world.Dataset(batches=20), min_rollouts=0, max_rollouts=8)
    sizes = []
    for index in range(12):
        builders = data.get_batch(index)
        world.rollouts(builders)
        sizes.append(world.counts(builders))
        assert sum(sizes[-1]) == 32
    assert min(map(len, sizes)) < world.GROUPS
    assert data.tracker.learned == 12
