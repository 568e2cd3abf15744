"""Group builders: how many environments one makes, how to change that, and what becomes of its group's outcomes."""

from __future__ import annotations

import copy
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import chz
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, Trajectory

from knapsack_rl.tinker.kept import Keeping
from knapsack_rl.tinker.outcome_log import Group, OutcomeLog
from knapsack_rl.tinker.tasks import SIZE_FIELDS
from knapsack_rl.tinker.tracker import OutcomeTracker


def group_size(builder: EnvGroupBuilder) -> int:
    """The number of environments that the builder makes.

    Raises:
        ValueError: a builder without a field for it.
    """
    return int(getattr(builder, _size_field(builder)))


def resized(builder: EnvGroupBuilder, count: int) -> EnvGroupBuilder:
    """A copy of the builder that makes ``count`` environments, and has all its state otherwise.

    The field is changed; make_envs is not called several times: a builder may hold what its latest call made (with the
    cookbook's sandboxes, a second call would leave those of the first running), and environments of one call may share
    state.

    Raises:
        ValueError: a builder without a field for its size.
    """
    name = _size_field(builder)
    if chz.is_chz(builder):
        return chz.replace(builder, **{name: count})
    other = copy.copy(builder)  # dataclasses.replace would draw anew what is drawn when a builder is made
    object.__setattr__(other, name, count)  # frozen ones too
    return other


def _size_field(builder: EnvGroupBuilder) -> str:
    for name in SIZE_FIELDS:
        if isinstance(getattr(builder, name, None), int):
            return name
    raise ValueError(
        f"{type(builder).__name__} makes a fixed number of environments: give it a field num_envs or group_size that "
        "its make_envs obeys"
    )


@dataclass(frozen=True)
class Share:
    """What a plan gives to a group.

    Attributes:
        inner: makes the environments, ``count`` of them.
        group: which group it is, without rewards.
        count: planned rollouts.
        weight: of `prompt_weights`, by which rewards are scaled where prompts weigh alike; None where rollouts do.
        keeping: keeps successes and uses them; None if none are kept.
        metrics: of the batch, for the first of its groups.
    """

    inner: EnvGroupBuilder
    group: Group
    count: int
    weight: float | None = None
    keeping: Keeping | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class AllocatedGroupBuilder(EnvGroupBuilder):  # type: ignore[misc]  # Any to the checker, in an environment without Tinker
    """A builder whose group is logged when its rewards are computed.

    Attributes:
        termination: how the cookbook changes rewards after they are computed.
        log: where the group is logged.
        tracker: learns what is logged. None in another process, whose groups are learned later.
        begin: plans its batch, given a sampling client. None if it was planned before the loop got it.
        share: what the plan gave it; None before that, and if it got nothing.
    """

    termination: TerminationRewardPolicy | None
    log: OutcomeLog
    tracker: OutcomeTracker | None
    begin: Callable[[Any], Awaitable[None]] | None = None
    share: Share | None = None
    _logged: bool = field(default=False, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """All but the tracker and the batch."""
        return self.__dict__ | {"tracker": None, "begin": None}

    @property
    def count(self) -> int:
        """Planned rollouts."""
        return 0 if self.share is None else self.share.count

    async def make_envs(self) -> Sequence[Env]:
        """As many environments as planned.

        Raises:
            ValueError: the wrapped builder made another number, or there is no plan.
        """
        share = self._planned()
        self._logged = False  # a group that was too stale to train on is run again
        envs = await share.inner.make_envs()
        if len(envs) != share.count:
            raise ValueError(
                f"{type(share.inner).__name__} made {len(envs)} environments where {share.count} were planned: its "
                "make_envs must obey its num_envs or group_size"
            )
        return envs

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, dict[str, float | int]]]:
        """The wrapped builder's rewards, logged; the group that completes a batch carries the batch's metrics.

        Rewards of every kind of number (numpy's, torch's, bool, Decimal) become floats, those of the steps as well.
        What is logged is what the environments gave. Then, where successes are kept, one may replace a trajectory of a
        group of failures (in ``trajectory_group``, which the cookbook trains on), and where prompts weigh alike, all
        rewards are scaled.

        Raises:
            ValueError: a reward that is infinite or no number, or not one pair for each trajectory.
        """
        share = self._planned()
        given = await share.inner.compute_group_rewards(trajectory_group, env_group)
        answers = self._pairs(share.inner, given, trajectory_group)
        for one in trajectory_group:
            for step in one.transitions:
                step.reward = self._number(step.reward, "step")
        rewards = [self._total(one, answer[0]) for one, answer in zip(trajectory_group, answers, strict=True)]
        tokens = [sum(len(step.ac.tokens) for step in one.transitions) for one in trajectory_group]
        group = share.group._replace(rewards=rewards, tokens=tokens)
        if share.keeping is not None:
            group = share.keeping.applied(group, trajectory_group, answers)
        metrics = {**self._write(group), **share.metrics}
        if share.weight is not None:
            factor = share.weight * share.count / max(len(answers), 1)  # some rollouts may have failed
            _scale(factor, trajectory_group, answers, rewards)
        if answers:
            answers[0] = (answers[0][0], answers[0][1] | metrics)
        return answers

    async def cleanup(self) -> None:
        """Clean up the wrapped builder; log a group that failed as one without rollouts."""
        if self.share is None:
            return
        try:
            await self.share.inner.cleanup()
        finally:
            if not self._logged:
                self._write(self.share.group)

    def logging_tags(self) -> list[str]:
        """The wrapped builder's."""
        return list(self._planned().inner.logging_tags())

    def _planned(self) -> Share:
        if self.share is None:
            raise ValueError(
                "this group has no plan: its batch is planned by the rollout strategy that `allocated` sets in "
                "rollout_error_tolerance, so call allocated(config) last, or pass ask=False"
            )
        return self.share

    def _pairs(
        self, inner: EnvGroupBuilder, given: Any, trajectories: Sequence[Trajectory]
    ) -> list[tuple[float, dict[str, float | int]]]:
        name = type(inner).__name__
        try:
            pairs = [(self._number(reward, "compute_group_rewards"), metrics) for reward, metrics in given]
        except TypeError as error:
            raise ValueError(
                f"compute_group_rewards of {name} returned {given!r}: it must return a reward and metrics for each "
                "trajectory"
            ) from error
        if len(pairs) != len(trajectories):
            raise ValueError(
                f"compute_group_rewards of {name} returned {len(pairs)} rewards for {len(trajectories)} trajectories"
            )
        return pairs

    def _number(self, reward: Any, source: str) -> float:
        try:
            plain = reward.item() if hasattr(reward, "item") else reward  # of numpy and torch
            number = math.inf if isinstance(plain, str | bytes) else float(plain)
        except (TypeError, ValueError, RuntimeError):
            number = math.inf
        if math.isinf(number):
            share = self._planned()
            raise ValueError(
                f"prompt {share.group.prompt_id!r} of {type(share.inner).__name__} got the reward {reward!r} from "
                f"{source}: rewards are finite numbers"
            )
        return number

    def _write(self, group: Group) -> dict[str, float]:
        self._logged = True
        self.log.write(group)
        metrics = self.tracker.collect() if self.tracker is not None else {}
        return {f"knapsack/{name}": value for name, value in metrics.items() if not math.isnan(value)}

    def _total(self, trajectory: Trajectory, final_reward: float) -> float:
        """The reward that the cookbook will train on: it lowers some after they are computed."""
        total = sum(step.reward for step in trajectory.transitions) + final_reward
        policy = self.termination
        limited = (
            policy is not None and policy.zero_reward_on_limit and trajectory.stop_reason in policy.limit_stop_reasons
        )
        return min(total, 0.0) if limited else total


def _scale(
    factor: float,
    trajectories: Sequence[Trajectory],
    answers: list[tuple[float, dict[str, float | int]]],
    rewards: Sequence[float],
) -> None:
    """Scale all rewards of a group in place, and note those that the environments gave as a metric."""
    for trajectory in trajectories:
        for step in trajectory.transitions:
            step.reward *= factor
    for i, (final, metrics) in enumerate(answers):
        answers[i] = (final * factor, metrics | {"knapsack/reward": rewards[i]})
