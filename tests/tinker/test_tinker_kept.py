"""Kept successes as trajectories of later groups, and prompts that weigh alike; no server."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest
import world
from test_tinker_looks import ASKED, config
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl import train as train_loop
from tinker_cookbook.rl.data_processing import assemble_training_data, compute_advantages
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, TrajectoryGroup

import tinker
from knapsack_rl import group_advantages
from knapsack_rl.tinker import allocated
from knapsack_rl.tinker.outcome_log import Group, Success
from knapsack_rl.trace import read_trace


@dataclass(frozen=True)
class Scripted(EnvGroupBuilder):
    """Rewards of each prompt by batch: the rollouts of a group get them in turn, those of later prompts more."""

    prompt: int
    batch: int
    rewards: Sequence[Sequence[float]]
    varied: bool = False
    shift: int = 0
    num_envs: int = world.SIZE

    @property
    def prompt_id(self) -> str:
        return f"p{self.prompt}"

    async def make_envs(self) -> Sequence[Env]:
        script = self.rewards[self.batch]
        rewards = [script[(i + self.shift) % len(script)] + self.shift / 2 for i in range(self.num_envs)]
        return [Shown(self.prompt, reward, self.batch if self.varied else 0) for reward in rewards]


@dataclass
class Shown(world.RewardEnv):
    """An environment that may show another prompt in each batch."""

    shown: int = 0

    async def initial_observation(self) -> tuple[tinker.ModelInput, list[int]]:
        return world.observation(self.prompt + self.shown), [world.END]


def scripted(
    path: Path, rewards: Sequence[Sequence[float]], varied: bool = False, prompts: int = 2, **options: Any
) -> tuple[Any, list[list[TrajectoryGroup]]]:
    """A run of one batch for each list of rewards; the tokens of a rollout say in which batch it was sampled."""

    def builder(prompt: int, batch: int) -> Scripted:
        return Scripted(prompt % prompts, batch, rewards, varied, prompt % prompts if prompts > 2 else 0)

    data = world.dataset(path, world.Dataset(builder=builder, batches=len(rewards)), **options)
    came = []
    for batch in range(len(rewards)):
        calls = iter(range(1000))

        async def policy(prompt: tinker.ModelInput, stop: Any, batch: int = batch, calls: Any = calls) -> Any:
            return TokensWithLogprobs(tokens=[10 + batch, next(calls)], maybe_logprobs=[-0.5, -0.25 - batch])

        async def run(groups: Any, policy: Any = policy) -> list[TrajectoryGroup]:
            return [await do_group_rollout(group, policy) for group in groups]

        came.append(asyncio.run(run(data.get_batch(batch))))
    return data, came


def tokens(group: TrajectoryGroup) -> list[list[int]]:
    return [one.transitions[0].ac.tokens for one in group.trajectories_G]


def test_a_kept_success_replaces_one_rollout_of_a_group_of_failures(tmp_path: Path) -> None:
    scripts = [[0.0, 1.5, 0.0, 1.0], [0.0], [0.0, 0.5]]
    data, came = scripted(tmp_path, scripts, keep_successes=True, success_threshold=1.0)
    first, second, third = (batch[0] for batch in came)
    assert first.get_total_rewards() == [0.0, 1.5, 0.0, 1.0]
    kept = tokens(came[0][-2])[3]  # the last success of prompt 0, which is in every other group of a batch
    assert kept[0] == 10
    for late, failed in ((second, [0.0, 0.0, 0.0]), (third, [0.0, 0.5, 0.0])):
        assert late.get_total_rewards() == [*failed, 1.0]
        assert tokens(late)[3] == kept
        assert late.trajectories_G[3].transitions[0].ac.logprobs == [-0.5, -0.25]
        assert kept not in tokens(late)[:3]
    # What the loop trains on: the tokens of then, with the log-probabilities of then.
    data_D, which = assemble_training_data([second], compute_advantages([second]))
    datum = data_D[[each["traj_idx"] for each in which].index(3)]
    assert datum.loss_fn_inputs["target_tokens"].data[-2:] == kept
    assert datum.loss_fn_inputs["logprobs"].data[-2:] == [-0.5, -0.25]
    assert datum.loss_fn_inputs["advantages"].data[-2:] == [0.75, 0.75]
    # What is believed is what was sampled now.
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.outcomes.rewards_PG.max() for step in steps] == [1.5, 0.0, 0.5]
    metrics = [{name: value for group in batch for name, value in group.metrics_G[0].items()} for batch in came]
    found = [[each[f"knapsack/{name}"] for name in ("kept", "kept_used")] for each in metrics]
    assert found == [[2.0, 0.0], [2.0, 8.0], [2.0, 8.0]]
    assert [each.get("knapsack/kept_age") for each in metrics] == [None, 1.0, 2.0]
    assert len(data.tracker.kept) == 2


def test_a_success_is_not_used_beyond_its_age(tmp_path: Path) -> None:
    scripts = [[0.0, 1.5, 0.0, 1.0], [0.0], [0.0, 0.5]]
    _, came = scripted(tmp_path, scripts, keep_successes=True, success_threshold=1.0, kept_max_age=1)
    for name, expected in (("kept_used", [0.0, 8.0, 0.0]), ("kept", [2.0, 2.0, 0.0])):
        found = [sum(group.metrics_G[0].get(f"knapsack/{name}", 0) for group in batch) for batch in came]
        assert found == expected


def logged(data: Any, step: int, prompt_id: str, token: int, observation: str) -> None:
    """A second run of a group of an earlier step finishes, with a success."""
    success = Success(observation, 1.0, np.array([token], dtype=np.int32), np.array([-0.5], dtype=np.float32))
    data.tracker.log.write(Group(step, 0, prompt_id, [0.0, 1.0], [1, 1], success=success))
    data.tracker.collect()


def test_a_second_run_does_not_replace_a_later_success(tmp_path: Path) -> None:
    """Neither what is kept nor what it answers, which belong together."""
    data, _ = scripted(tmp_path, [[0.0, 1.0], [0.0, 1.0]], keep_successes=True, success_threshold=1.0)
    before = data.tracker.keeping("p0", 2).kept
    logged(data, 0, "p0", 99, "of then")
    after = data.tracker.keeping("p0", 2).kept
    assert (after[1].step, after[1].tokens_T.tolist()) == (1, before[1].tokens_T.tolist())
    assert after[0] == before[0] != "of then"
    logged(data, 1, "p0", 98, "of now")
    after = data.tracker.keeping("p0", 2).kept
    assert (after[0], after[1].tokens_T.tolist()) == ("of now", [98])


def test_nothing_is_remembered_of_what_has_left_the_store(tmp_path: Path) -> None:
    data, _ = scripted(tmp_path, [[0.0, 1.0], [0.0, 1.0]], keep_successes=True, success_threshold=1.0)
    data.tracker.kept.max_bytes = 10_000
    names = [f"more{i}" for i in range(100)]
    for i, name in enumerate(names):
        logged(data, 1, name, i, f"observation {i}")
    with_one = [name for name in names if name in data.tracker.kept]
    assert 5 < len(with_one) < 15
    assert len(data.tracker._observations) <= 2 * len(data.tracker.kept)
    for name in with_one:
        observation, success = data.tracker.keeping(name, 2).kept
        assert observation == f"observation {success.tokens_T[0]}"


@pytest.mark.parametrize(
    ("scripts", "varied", "options"),
    [
        ([[0.0, 1.0], [0.0]], False, {"keep_successes": False}),
        ([[0.0, 1.0], [0.0]], True, {}),  # another prompt: the answer belongs to that of then
        ([[0.0, 0.9], [0.0]], False, {}),  # nothing to keep
        ([[0.0], [0.0]], False, {}),
        ([[0.0, 1.0], [0.0, 1.0]], False, {}),  # nothing to save
        ([[1.0], [1.0]], False, {}),
    ],
)
def test_all_other_groups_stay_as_they_are(
    tmp_path: Path, scripts: Sequence[Sequence[float]], varied: bool, options: dict[str, Any]
) -> None:
    settings = {"success_threshold": 1.0, "keep_successes": True} | options
    _, came = scripted(tmp_path, scripts, varied, **settings)
    for batch, script in zip(came, scripts, strict=True):
        for group in batch:
            count = len(group.trajectories_G)
            assert group.get_total_rewards() == [script[i % len(script)] for i in range(count)]
    assert {one[0] for group in came[1] for one in tokens(group)} == {11}


def test_a_success_that_is_kept_is_priced(tmp_path: Path) -> None:
    plain, _ = scripted(tmp_path / "plain", [[0.0, 1.0], [0.0], [0.0]], success_threshold=1.0)
    kept, _ = scripted(tmp_path / "kept", [[0.0, 1.0], [0.0], [0.0]], success_threshold=1.0, keep_successes=True)
    assert plain.session.allocator.kept is None
    assert kept.session.allocator.kept is kept.tracker.kept
    assert kept.session.allocator.kept.has(["p0", "p1", "p2"], 3).tolist() == [True, True, False]


def test_groups_of_other_processes_keep_and_use_successes_by_the_log(tmp_path: Path) -> None:
    def builder(prompt: int, batch: int) -> Scripted:
        return Scripted(prompt % world.GROUPS, batch, [[0.0, 1.0], [0.0]])

    inner = world.Dataset(builder=builder, batches=2)
    data = world.dataset(tmp_path, inner, keep_successes=True, success_threshold=1.0)
    for batch in range(2):
        groups = [pickle.loads(pickle.dumps(group)) for group in data.get_batch(batch)]
        came = world.rollouts(groups)
        assert [max(group.get_total_rewards()) for group in came] == [1.0] * world.GROUPS
    data.tracker.collect()
    assert len(data.tracker.kept) == world.GROUPS
    assert read_trace(tmp_path / "trace.jsonl").steps[1].outcomes.rewards_PG.max() == 0.0


def test_what_is_kept_is_as_it_was_after_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = ASKED | {"keep_successes": True}
    through = world.train(tmp_path / "through", range(6), **settings)
    world.train(tmp_path / "again", range(5), **settings)
    resumed = world.train(tmp_path / "again", range(4, 6), **settings)
    groups, others = through.get_batch(6), resumed.get_batch(6)
    assert {group.share.keeping is None for group in world_planned(groups, 6)} == {False}
    for one, other in zip(world_planned(groups, 6), world_planned(others, 6), strict=True):
        mine, theirs = one.share.keeping.kept, other.share.keeping.kept
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine[0] == theirs[0]
            assert mine[1].step == theirs[1].step
            np.testing.assert_array_equal(mine[1].log_probs_T, theirs[1].log_probs_T)


def world_planned(groups: Sequence[Any], step: int) -> list[Any]:
    if groups[0].share is None:
        world.sampled(groups, world.looking(step))
    return [group for group in groups if group.share is not None]


def test_a_loss_that_needs_the_servers_record_refuses_kept_successes(tmp_path: Path) -> None:
    @chz.chz
    class Config(train_loop.Config):
        def records_stability_info(self) -> bool:
            return True

    strict = Config(**{name: getattr(config(tmp_path), name) for name in chz.chz_fields(train_loop.Config)})
    with pytest.raises(ValueError, match="keep_successes=True with the loss stable_reinforce"):
        allocated(strict, keep_successes=True)
    assert allocated(strict)


@pytest.mark.parametrize("seed", range(5))
def test_prompts_weigh_alike_if_asked(tmp_path: Path, seed: int) -> None:
    """Advantages are the core's, for any rewards and group sizes; what is believed and shown is not scaled."""
    generator = np.random.default_rng(seed)
    scripts = [[round(float(each), 3) for each in generator.normal(size=23)] for _ in range(4)]
    settings: dict[str, Any] = {"rule": "beta", "success_threshold": 1.5, "min_rollouts": 2, "prompts": world.GROUPS}
    _, plain = scripted(tmp_path / "plain", scripts, **settings)
    data, came = scripted(tmp_path / "alike", scripts, weighting="prompt", **settings)
    assert data.session.config.weighting == "prompt"
    assert world.record_of(tmp_path / "plain") == world.record_of(tmp_path / "alike")
    uneven = 0
    for stock, batch in zip(plain, came, strict=True):
        rewards = [reward for group in stock for reward in group.get_total_rewards()]
        group_PG = [i for i, group in enumerate(stock) for _ in group.trajectories_G]
        expected = group_advantages(group_PG, rewards, scale="none", weighting="prompt")
        advantages = [float(each) for group in compute_advantages(batch) for each in group]
        np.testing.assert_allclose(advantages, expected, atol=1e-6)
        shown = [metrics["knapsack/reward"] for group in batch for metrics in group.metrics_G]
        assert shown == rewards
        uneven += len({len(group.trajectories_G) for group in batch}) > 1
    assert uneven
