"""The run that all hooks share in verl's task runner process: a session, and what was planned for each uid of verl.

In verl's synchronous mode all groups of a plan leave the buffer before the next plan is made. In its asynchronous modes
they leave late, in any order and in parts of several plans.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import ArrayLike
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.config import AllocationConfig
from knapsack_rl.features.prompts import PromptLooks
from knapsack_rl.files import read_state
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.session import Session
from knapsack_rl.verl.settings import (
    ConfigError,
    Settings,
    asking_problem,
    rollouts_of_an_update,
    select,
    weighting_problem,
)

logger = logging.getLogger(__name__)

GROUPS_FILE = "knapsack_groups.npz"

# Settings of verl that distinguish runs in the trace.
_TRACED = (
    "algorithm.adv_estimator", "actor_rollout_ref.model.path", "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.loss_agg_mode", "data.train_batch_size", "trainer.v1.trainer_mode",
)  # fmt: skip


class PlannedGroup(NamedTuple):
    """A group that has not left the replay buffer: number of its plan, place in it, and what was planned.

    verl may restart it after a resume; it then has the same number of rollouts, of the same plan.
    """

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
        kept: successes that replace rollouts of groups that fail as a whole; None if none are kept.
        looks: what prompts look like; None for rules that do not use it.
        looked: metrics of the latest round of looks.
        estimator: of advantages, as the user has set it.
        trainer: verl's trainer, once the replay buffer has been made.
        planned: groups in verl's queue, by uid.
        owed: planned rollouts of groups that verl has dropped, for which it will ask to generate other groups.
    """

    current: SharedRun | None = None

    def __init__(self, config: Any, settings: Settings) -> None:
        """A run as ``config`` describes it, resumed where verl's trainer will resume: verl has no hook for loading.

        Raises:
            BeliefFileError: the saved state is damaged, or of another rule.
        """
        self.config, self.settings, self.estimator = config, settings, config.algorithm.adv_estimator
        self.kept = KeptSuccesses(max_age=settings.kept_max_age) if settings.keep_successes else None
        allocator = settings.allocation.make_allocator(kept=self.kept)
        self.session = Session(settings.allocation, allocator=allocator)
        self.looks = PromptLooks(settings.features) if settings.allocation.rule == "calibrated" else None
        self.looked: dict[str, float] = {}
        self.trainer: Any = None
        self.folder = Path(config.trainer.default_local_dir).absolute()
        self.planned: dict[str, PlannedGroup] = {}
        self.owed = 0
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            step = int(checkpoint.name.rpartition("global_step_")[2])
            state = self.session.load_from(checkpoint, step_without_state=step)
            if state is not None and (state.get("adapter") or (checkpoint / GROUPS_FILE).exists()):
                saved = state.get("adapter") or read_state(checkpoint / GROUPS_FILE)  # a file of its own before 0.9
                self.planned = {uid: PlannedGroup(*group) for uid, group in saved["groups"].items()}
                if self.kept is not None and saved.get("kept"):
                    self.kept.load_state_dict(saved["kept"])
        self._plans = max((group.plan + 1 for group in self.planned.values()), default=0)

    @classmethod
    def get(cls) -> SharedRun:
        """The run of this process.

        Raises:
            ConfigError: `SaveBeliefs` was not configured, so there is none.
        """
        if cls.current is None:
            raise ConfigError("there is no run: set trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs")
        return cls.current

    @property
    def leaves_out(self) -> bool:
        """Whether a plan may leave prompts out, so that its number of groups is not that of verl's batch."""
        return self.settings.allocation.min_count == 0

    @property
    def stock(self) -> bool:
        """Whether the run trains on exactly what verl would train on without us."""
        return self.settings.allocation.rule == "uniform"

    def begin(self, queued: Collection[str]) -> None:
        """Fit the pool to the data, set the half-life, which is counted in passes over them, and open the trace.

        Args:
            queued: uids in verl's queue. Groups of a restored plan that are not there will not come: the checkpoint is
                of another mode, or verl has lost them.

        Raises:
            ConfigError: a pool of more prompts than there are.
        """
        batches = self.trainer.steps_per_epoch
        self.settings = self.settings.with_pool_of(batches)
        allocation, allocator = self.settings.allocation, self.session.allocator
        assert isinstance(allocator, KnapsackAllocator) and allocation.pool is not None
        assert allocation.min_count is not None
        self.session.config, allocator.min_count = allocation, allocation.min_count
        half_life = allocation.half_life_in_steps(batches)
        allocation.set_half_life(allocator, half_life)
        if self.settings.trace_file is not None:
            traced = {name: select(self.config, name) for name in _TRACED}
            run = {
                "engine": "verl",
                "rule": allocation.rule,
                "seed": self.config.data.get("seed"),
                "settings": self.settings.by_name() | {"half_life": half_life} | traced,
            }
            self.session.open_trace(self.folder / self.settings.trace_file, run)
        self.learn([uid for uid in self.planned if uid not in queued], [], self.session.step)
        if not self.planned:
            for plan in self.session.open_plans:
                self.session.give_up(plan.step)
        print(f"knapsack-rl: {self._described(batches)}")

    def plan(
        self,
        prompt_ids: Sequence[str],
        budget: int,
        step: int,
        texts: Sequence[Any],
        log_prob_P: ArrayLike | None = None,
    ) -> list[PlannedGroup]:
        """Divide rollouts among prompts; the group of each, those of 0 rollouts included.

        Args:
            prompt_ids, texts: the stable id and the content of each prompt.
            budget: rollouts to divide.
            step: generation step, from 0; several batches may be planned in one.
            log_prob_P: log-probability of the most probable next token of each prompt, NaN where it is not known; None
                if it is known nowhere.
        """
        with self.session.working():
            plan = self.session.plan(
                prompt_ids,
                budget,
                features=None if self.looks is None else self.looks(texts, log_prob_P),
                step=step,
                texts=dict(zip(prompt_ids, texts, strict=True)),
            )
        self._plans += 1
        return [
            PlannedGroup(self._plans - 1, i, prompt_id, step, count)
            for i, (prompt_id, count) in enumerate(zip(prompt_ids, plan.counts_P.tolist(), strict=True))
        ]

    def within_limits(self, budget: int, prompts: int) -> int:
        """The budget, or the nearest to it that the limits allow for so many prompts.

        Settings are checked for the budget of a step. Parts of a batch, and groups in place of others that verl has
        dropped, have any number of rollouts.
        """
        allocator = self.session.allocator
        assert isinstance(allocator, KnapsackAllocator)
        least = max(prompts * allocator.min_count, allocator.min_group)
        return min(max(budget, least), prompts * allocator.max_count)

    def rollouts(self, uids: Iterable[str]) -> int:
        """Planned rollouts of these groups; the average for one that was planned by a run without us."""
        average = self.settings.allocation.average
        return sum(self.planned[uid].rollouts if uid in self.planned else average for uid in uids)

    def step(self, uid: str, global_steps: int) -> int:
        """The step, from 0, that a group was planned in; verl's own number where no plan is known."""
        return self.planned[uid].step if uid in self.planned else global_steps - 1

    def order(self, uid: str) -> tuple[int, int]:
        """Sort key of a group: number of its plan, place in the plan; groups without a plan come first."""
        group = self.planned.get(uid)
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
        left = {uid: self.planned.pop(uid) for uid in uids if uid in self.planned}
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

    def weigh_by_rollout(self, reason: str) -> None:
        """Go on with verl's own estimator, unless the user has set the other weighting.

        Raises:
            ConfigError: it was set.
        """
        if "group_weighting" in self.settings.given:
            raise ConfigError(f"{reason}: set knapsack.group_weighting=rollout")
        logger.warning("%s: from here on rollouts weigh the same, as with knapsack.group_weighting=rollout", reason)
        allocation = replace(self.settings.allocation, weighting="rollout")
        self.settings = replace(self.settings, allocation=allocation)
        # Before the first advantages: verl's trainer reads its estimator in each step, after it has sampled.
        self.config.algorithm.adv_estimator = self.estimator

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
        groups = {uid: list(group) for uid, group in self.planned.items()}
        kept = None if self.kept is None else self.kept.state_dict()
        self.session.save_to(checkpoint, adapter={"groups": groups, "kept": kept})

    def _described(self, batches: int) -> str:
        """The settings that decide most, and why some are less than by default."""
        allocation, given = self.settings.allocation, self.settings.given
        said = f"rule={allocation.rule}, pool={allocation.pool}, group_weighting={allocation.weighting}"
        if self.looks is not None:
            looks = [self.looks.described, "log odds of the next token" if self.settings.ask else ""]
            said += f", look={' + '.join(filter(None, looks)) or 'none'}"
        if self.kept is not None:
            said += ", successes are kept"
        if "max_n" not in given and allocation.max_count == rollouts_of_an_update(self.config):
            said += f", max_n={allocation.max_count}, the rollouts of a local update"
        least = allocation.min_count if "min_n" in given else None
        default = AllocationConfig(allocation.rule, allocation.average, min_count=least)
        if allocation.pool != default.pool and "pool" not in given:
            said += f"; the data have {batches} batches, so the pool is not {default.pool}"
        if allocation.weighting != default.weighting and "group_weighting" not in given:
            said += f"; group_weighting=prompt {weighting_problem(self.config)}"
        if self.looks is not None and self.settings.features is None and "features" not in given:
            said += "; texts need scikit-learn: pip install 'knapsack-rl[text]'"
        if self.looks is not None and not self.settings.ask and asking_problem(self.config):
            said += f"; no log odds, because {asking_problem(self.config)}"
        return said

    def _checkpoint(self) -> Path | None:
        trainer = self.config.trainer
        found = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
        if trainer.resume_mode == "auto":
            found = find_latest_ckpt_path(str(self.folder))
        return Path(found).absolute() if found else None
