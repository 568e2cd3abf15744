"""The run that all hooks share in verl's task runner process: a session, and what was planned for each uid of verl.

In verl's synchronous mode all groups of a plan leave the buffer before the next plan is made. In its asynchronous modes
they leave late, in any order and in parts of several plans.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from knapsack_rl.beliefs.ids import content_id
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.files import read_state, write_state
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.verl.settings import ConfigError, Settings, select

logger = logging.getLogger(__name__)

GROUPS_FILE = "knapsack_groups.npz"

# Settings of verl that distinguish runs in the trace.
_TRACED = (
    "algorithm.adv_estimator", "actor_rollout_ref.model.path", "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.loss_agg_mode", "data.train_batch_size", "trainer.v1.trainer_mode",
)  # fmt: skip


class PlannedGroup(NamedTuple):
    """A group that has not left the replay buffer: number of its plan, place in it, and what was planned."""

    plan: int
    place: int
    prompt_id: str
    step: int
    rollouts: int


class Rollout(NamedTuple):
    """A rollout that came back, with the step (from 0) that it was planned in."""

    uid: str
    prompt_id: str
    step: int
    reward: float
    tokens: int


class SharedRun:
    """A session, verl's configuration, and what verl's trainer knows.

    Attributes:
        current: the run of this process, once `SaveBeliefs` has been made.
        session: plans and learns.
        trainer: verl's trainer, once the replay buffer has been made.
    """

    current: SharedRun | None = None

    def __init__(self, config: Any, settings: Settings) -> None:
        """A run as ``config`` describes it, resumed where verl's trainer will resume: verl has no hook for loading.

        Raises:
            BeliefFileError: the saved state is damaged, or of another rule.
        """
        self.config, self.settings = config, settings
        self.session = Session(settings.allocation)
        self.text_features = TextFeatures() if settings.features else None
        self.trainer: Any = None
        self.folder = Path(config.trainer.default_local_dir).absolute()
        self._planned: dict[str, PlannedGroup] = {}
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            step = int(checkpoint.name.rpartition("global_step_")[2])
            if not self.session.load_from(checkpoint, step_without_state=step):
                logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", checkpoint)
            elif (checkpoint / GROUPS_FILE).exists():
                saved = read_state(checkpoint / GROUPS_FILE)["groups"]
                self._planned = {uid: PlannedGroup(*group) for uid, group in saved.items()}
        self._plans = max((group.plan + 1 for group in self._planned.values()), default=0)

    @classmethod
    def get(cls) -> SharedRun:
        """The run of this process.

        Raises:
            ConfigError: `SaveBeliefs` was not configured, so there is none.
        """
        if cls.current is None:
            raise ConfigError("there is no run: set trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs")
        return cls.current

    def begin(self) -> None:
        """Set the half-life, which is counted in passes over the data, and open the trace: both need the data.

        Raises:
            ConfigError: a pool of more prompts than there are.
        """
        allocation, batches = self.settings.allocation, self.trainer.steps_per_epoch
        if allocation.pool != 1 and not batches:
            raise ConfigError(
                f"knapsack.pool={allocation.pool} asks for {self.config.data.train_batch_size} candidates a step, and "
                "the training data have fewer: use a smaller pool, or a smaller data.train_batch_size"
            )
        half_life = allocation.half_life_in_steps(batches)
        allocation.set_half_life(self.session.allocator, half_life)  # type: ignore[arg-type]  # made by the session
        if self.settings.trace_file is not None:
            traced = {name: select(self.config, name) for name in _TRACED}
            run = {
                "engine": "verl",
                "rule": allocation.rule,
                "seed": self.config.data.get("seed"),
                "settings": self.settings.by_name() | {"half_life": half_life} | traced,
            }
            self.session.open_trace(self.folder / self.settings.trace_file, run)

    def plan(self, uids: Sequence[str], prompt_ids: Sequence[str], step: int, texts: Sequence[Any]) -> Plan:
        """Divide the rollouts of a batch, of any size: with a pool, a full batch shares those of ``1 / pool`` of it.

        Args:
            uids, prompt_ids, texts: verl's name, the stable id and the content of each prompt. A uid is planned again
                where verl restarts, after a resume, a group that was being generated.
            step: generation step, from 0; several batches may be planned in one.
        """
        allocation, full = self.settings.allocation, len(uids) == self.config.data.train_batch_size
        assert allocation.pool is not None
        with self.session.working():
            self.learn([uid for uid in uids if uid in self._planned], [], step)
            plan = self.session.plan(
                prompt_ids,
                len(uids) * allocation.average // (allocation.pool if full else 1),
                features=None if self.text_features is None else self.text_features(texts),
                step=step,
                texts=dict(zip(prompt_ids, texts, strict=True)),
            )
        for i, uid in enumerate(uids):
            self._planned[uid] = PlannedGroup(self._plans, i, prompt_ids[i], step, int(plan.counts_P[i]))
        self._plans += 1
        return plan

    def order(self, uid: str) -> tuple[int, int]:
        """Sort key of a group: number of its plan, place in the plan; groups without a plan come first."""
        group = self._planned.get(uid)
        return (-1, 0) if group is None else (group.plan, group.place)

    def learn(
        self,
        uids: Collection[str],
        rollouts: Sequence[Rollout],
        optimizer_step: int,
        samples: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, float]:
        """Take in groups that leave the buffer, whole, in part or empty; each uid once.

        Args:
            uids: the groups.
            rollouts: those of the groups' rollouts that came back.
            optimizer_step: training steps done.
            samples: a few completions, for the record.

        Returns:
            Metrics of the plan that is now complete (the largest, if several are) and ``lag``, training steps from plan
            to outcome; empty if none is.
        """
        came = Counter(rollout.uid for rollout in rollouts)
        left = {uid: self._planned.pop(uid) for uid in uids if uid in self._planned}
        lost = [(group.step, group.prompt_id) for uid, group in left.items() for _ in range(came[uid], group.rollouts)]
        complete: list[dict[str, float]] = []
        with self.session.working():
            for step in sorted({*(rollout.step for rollout in rollouts), *(group.step for group in left.values())}):
                here = [rollout for rollout in rollouts if rollout.step == step]
                learned = self.session.observe(
                    step,
                    [rollout.prompt_id for rollout in here],
                    [rollout.reward for rollout in here],
                    [rollout.tokens for rollout in here],
                    optimizer_step=optimizer_step,
                    samples=samples,
                    unplanned=True,
                )
                given_up = self.session.give_up(step, [prompt_id for at, prompt_id in lost if at == step])
                lag = {"lag": float(optimizer_step - step)}
                complete += [metrics | lag for metrics in (learned, given_up) if metrics]
        return max(complete, key=lambda metrics: metrics["candidates"], default={})

    def step_learned(self, step: int) -> None:
        """Called when all outcomes of training step ``step`` (1-based) are learned.

        If verl saves a checkpoint at its end, the state is put there now: `SaveBeliefs` is called only after verl has
        marked its checkpoint as complete, and a run killed between the two would resume without it.
        """
        last, every = step >= self.trainer.total_training_steps, self.config.trainer.save_freq
        if every > 0 and (last or step % every == 0):
            self.save(self.folder / f"global_step_{step}")
        if last and self.session.trace is not None:
            self.session.trace.end("finished")
            self.session.trace = None  # in the asynchronous modes, outcomes may still come

    def save(self, checkpoint: Path) -> None:
        """Write the state beside verl's own files."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_state(checkpoint / GROUPS_FILE, {"groups": {uid: list(group) for uid, group in self._planned.items()}})
        self.session.save_to(checkpoint)

    def _checkpoint(self) -> Path | None:
        trainer = self.config.trainer
        found = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
        if trainer.resume_mode == "auto":
            found = find_latest_ckpt_path(str(self.folder))
        return Path(found).absolute() if found else None


def prompt_ids(by: str, indices: Sequence[Any], sources: Sequence[Any], prompts: Sequence[Any]) -> list[str]:
    """Stable ids of the rows of a batch.

    An index alone may be missing (verl then says 0) or stand for two rows (data sets laid together), so the content is
    part of the id. By content alone, copies of a prompt share one belief.

    Args:
        by: ``index`` or ``content``.
        indices, sources, prompts: of each row.

    Raises:
        ValueError: a prompt that cannot be hashed (images) and has no index of its own.
    """
    ids = []
    for index, source, prompt in zip(indices, sources, prompts, strict=True):
        try:
            content = content_id(prompt)
        except TypeError as error:
            if by == "content" or index in (None, 0):
                raise ValueError(
                    f"a prompt of {source!r} cannot be hashed ({error}): give every row its own extra_info.index, "
                    "other than 0, and set knapsack.prompt_id=index"
                ) from error
            content = "-"
        ids.append(content if by == "content" else f"{source}/{index}/{content}")
    return ids
