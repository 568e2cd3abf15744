"""A data set of the cookbook whose groups are as large as the plan says.

The cookbook asks for a batch when it is about to generate it (in its asynchronous loop: when there is room for it), and
that is when the plan is made. Which prompts are in the batch stays the wrapped data set's business; with a pool, it
offers several batches, and the plan chooses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinker_cookbook import checkpoint_utils
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, Trajectory

from knapsack_rl.session import Session
from knapsack_rl.text_features import TextFeatures
from knapsack_rl.tinker.builders import PromptId, PromptText, group_size, prompt_of, resized
from knapsack_rl.tinker.journal import Group, Journal
from knapsack_rl.tinker.ledger import Ledger

logger = logging.getLogger(__name__)

FOLDER, TRACE_FILE = "knapsack", "trace.jsonl"


class AllocatedDataset(RLDataset):  # type: ignore[misc]  # Any to the checker, in an environment without Tinker
    """A data set whose batches spend what the wrapped one's would, divided among their prompts by the plan.

    With a pool of k, step i chooses from the batches k i to k i + k - 1 of the wrapped one, counted on from pass to
    pass, and spends what one of them would on average. So the number of steps is that of a run without a pool.
    """

    def __init__(
        self,
        inner: RLDataset,
        session: Session,
        log_path: Path,
        run: Mapping[str, object],
        *,
        success_threshold: float = 1.0,
        epochs: int = 1,
        max_steps: int | None = None,
        pool: int = 1,
        features: TextFeatures | None = None,
        prompt_id: PromptId | None = None,
        prompt_text: PromptText | None = None,
        termination: TerminationRewardPolicy | None = None,
    ) -> None:
        """A data set around another one.

        Args:
            inner: what the prompts come from.
            session: plans and learns.
            log_path: the cookbook's, where its checkpoints are listed.
            run: what the trace says of the run.
            success_threshold: the least reward that counts as a success.
            epochs: passes over ``inner``.
            max_steps: as in the cookbook's config.
            pool: batches of candidates for each step.
            features: told of every prompt before it is planned for.
            prompt_id: names the prompt of a builder that does not do so itself.
            prompt_text: the text of the prompt of a builder that does not make `ProblemEnv`.
            termination: how the cookbook changes rewards after it has asked for them.

        Raises:
            ValueError: a pool of more batches than there are.
        """
        if pool > max(len(inner), 1):
            raise ValueError(
                f"pool is {pool}, and the data set has {len(inner)} batches: a prompt cannot be a candidate twice in "
                "a step, so use a smaller pool or smaller batches"
            )
        self.inner, self.session, self.log_path, self.run = inner, session, log_path, run
        self.ledger = Ledger(session, log_path / FOLDER, success_threshold)
        self.epochs, self.pool, self.features, self.termination = epochs, pool, features, termination
        self.prompt_id, self.prompt_text = prompt_id, prompt_text
        self.last = min(len(self), max_steps or len(self)) - 1
        self._next: int | None = None
        self._checkpoints = (-1, 0)  # size of the cookbook's list when it was last read, and the batch of the latest

    def __len__(self) -> int:
        return len(self.inner) * self.epochs

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """Plan a batch: its builders, each making as many environments as the plan gives its prompt.

        Raises:
            ValueError: a builder whose size cannot be set or whose prompt has no name, or a budget that the limits
                cannot meet.
        """
        if index == self._next:
            self.ledger.collect()
            self._save_if_checkpointed()
        else:
            self._start_at(index)
        with self.session.working():
            builders, prompts = self._candidates(index)
            budget = round(sum(map(group_size, builders)) / self.pool)
            plan = self.session.plan([name for name, _ in prompts], budget)
            self.ledger.expect(plan, {name: text for name, text in prompts if text is not None})
            self._next = index + 1
            return [
                AllocatedGroupBuilder(
                    resized(builder, count), count, Group(plan.step, i, plan.prompt_ids[i], (), ()), self
                )
                for i, (builder, count) in enumerate(zip(builders, plan.counts_P.tolist(), strict=True))
                if count
            ]

    def collect(self) -> dict[str, float]:
        """Learn what has come back; the metrics of a batch that this has completed."""
        self.ledger.collect()
        if self.ledger.learned > self.last and self.session.trace is not None:
            self.session.trace.end("finished")
        return self.ledger.take_metrics()

    def _candidates(self, index: int) -> tuple[list[EnvGroupBuilder], list[tuple[str, str | None]]]:
        """The builders that a step chooses from, and their prompts: names and texts.

        Raises:
            ValueError: a prompt without a name, or without a text that is to tell what it looks like.
        """
        batches = [(self.pool * index + i) % len(self.inner) for i in range(self.pool)]
        builders = [builder for batch in batches for builder in self.inner.get_batch(batch)]
        prompts = [prompt_of(builder, self.prompt_id, self.prompt_text) for builder in builders]
        if self.features is not None:
            for builder, (_, text) in zip(builders, prompts, strict=True):
                if text is None:
                    raise ValueError(
                        f"{type(builder).__name__} does not say what its prompt is: pass prompt_text=function of a "
                        "builder, or no features"
                    )
            self.features.remember([name for name, _ in prompts], [text for _, text in prompts])
        return builders, prompts

    def _start_at(self, index: int) -> None:
        """The cookbook starts, or goes on from its latest checkpoint: so must beliefs and trace."""
        if index == 0:
            self.ledger.begin()
        elif not self.ledger.resume(index, self._candidates if self.features is not None else None):
            logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", self.log_path)
        if self.session.trace is not None:
            self.session.trace.close()
        self.session.open_trace(self.log_path / TRACE_FILE, self.run)

    def _save_if_checkpointed(self) -> None:
        """Save when the cookbook has: what came in since is in the journal."""
        path = self.log_path / checkpoint_utils.CHECKPOINTS_BASE_NAME
        size = path.stat().st_size if path.exists() else 0
        if size > self._checkpoints[0]:
            latest = checkpoint_utils.get_last_checkpoint(str(self.log_path))
            self._checkpoints = size, latest.batch or 0 if latest else 0
            self.ledger.save(self._checkpoints[1])


class AllocatedGroupBuilder(EnvGroupBuilder):  # type: ignore[misc]
    """A builder whose group is observed: its rewards are written down when they are computed."""

    def __init__(self, inner: EnvGroupBuilder, count: int, group: Group, dataset: AllocatedDataset) -> None:
        """A group of a plan.

        Args:
            inner: makes the environments, ``count`` of them.
            count: planned rollouts.
            group: which group it is.
            dataset: what planned it.
        """
        self.inner, self.count, self.group = inner, count, group
        self.journal: Journal = dataset.ledger.journal
        self.termination = dataset.termination
        self.dataset: AllocatedDataset | None = dataset
        self._written = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the data set: a group that runs in another process writes to the journal, and is learned later."""
        return self.__dict__ | {"dataset": None}

    async def make_envs(self) -> Sequence[Env]:
        """As many environments as planned.

        Raises:
            ValueError: the wrapped builder made another number.
        """
        self._written = False  # a group that was too stale to train on is run again
        envs = await self.inner.make_envs()
        if len(envs) != self.count:
            raise ValueError(
                f"{type(self.inner).__name__} made {len(envs)} environments where {self.count} were planned: its "
                "make_envs must obey its num_envs or group_size"
            )
        return envs

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, dict[str, float | int]]]:
        """The wrapped builder's rewards, written down; the group that completes a batch carries the batch's metrics.

        Raises:
            ValueError: a reward that is infinite.
        """
        answers = list(await self.inner.compute_group_rewards(trajectory_group, env_group))
        rewards = [self._total(one, answer[0]) for one, answer in zip(trajectory_group, answers, strict=True)]
        if any(map(math.isinf, rewards)):
            raise ValueError(f"prompt {self.group.prompt_id!r} got the rewards {rewards}: they must be finite")
        tokens = [sum(len(step.ac.tokens) for step in one.transitions) for one in trajectory_group]
        metrics = self._write(self.group._replace(rewards=rewards, tokens=tokens))
        if answers:
            answers[0] = (answers[0][0], answers[0][1] | metrics)
        return answers

    async def cleanup(self) -> None:
        """The wrapped builder's; a group that failed is written down as one without rollouts."""
        try:
            await self.inner.cleanup()
        finally:
            if not self._written:
                self._write(self.group)

    def logging_tags(self) -> list[str]:
        """The wrapped builder's."""
        return list(self.inner.logging_tags())

    def _write(self, group: Group) -> dict[str, float]:
        self._written = True
        self.journal.write(group)
        metrics = self.dataset.collect() if self.dataset is not None else {}
        return {f"knapsack/{name}": value for name, value in metrics.items() if not math.isnan(value)}

    def _total(self, trajectory: Trajectory, final_reward: float) -> float:
        """The reward that the cookbook will train on: it lowers some after it has asked for them."""
        total = sum(step.reward for step in trajectory.transitions) + final_reward
        policy = self.termination
        limited = (
            policy is not None and policy.zero_reward_on_limit and trajectory.stop_reason in policy.limit_stop_reasons
        )
        return min(total, 0.0) if limited else total
