"""The one run of verl's task runner process, which all hooks share."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from knapsack_rl.beliefs import FADING_PASSES, PosteriorBeliefs
from knapsack_rl.session import Session
from knapsack_rl.verl.run import Run
from knapsack_rl.verl.settings import ConfigError, Settings, select

logger = logging.getLogger(__name__)

# Settings of verl that tell one run from another in its trace.
_TRACED = (
    "algorithm.adv_estimator", "actor_rollout_ref.model.path", "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.rollout.n", "data.train_batch_size",
    "trainer.v1.trainer_mode",
)  # fmt: skip


class SharedRun(Run):
    """The run, verl's configuration, and what verl's trainer knows.

    Attributes:
        current: the run of this process, once `SaveBeliefs` has been made.
        trainer: verl's trainer, once the replay buffer has been made.
    """

    current: SharedRun | None = None

    def __init__(self, config: Any, settings: Settings) -> None:
        """A run as ``config`` describes it, resumed where verl's trainer will resume: verl has no hook for loading."""
        features = settings.make_features()
        super().__init__(Session(settings.make_allocator(features)), settings.success_threshold, features)
        self.config, self.settings = config, settings
        self.trainer: Any = None
        self.folder = Path(config.trainer.default_local_dir).absolute()
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            step = int(checkpoint.name.rpartition("global_step_")[2])
            if self.session.load(checkpoint, step_without_beliefs=step) is None:
                logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", checkpoint)

    @classmethod
    def get(cls) -> SharedRun:
        """The run of this process.

        Raises:
            ConfigError: `SaveBeliefs` was not configured, so there is none.
        """
        if cls.current is None:
            raise ConfigError("there is no run: set trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs")
        return cls.current

    def budget(self, prompts: int) -> int:
        """Rollouts for so many prompts. A pool shares what one batch has; refills stand for whole groups."""
        candidates = prompts == self.config.data.train_batch_size
        return prompts * self.config.actor_rollout_ref.rollout.n // (self.settings.pool if candidates else 1)

    def begin(self) -> None:
        """Do what had to wait for the data: the half-life, which is counted in passes over them, and the trace.

        Raises:
            ConfigError: a pool of more prompts than there are.
        """
        if self.settings.pool > 1 and not self.trainer.steps_per_epoch:
            raise ConfigError(
                f"knapsack.pool={self.settings.pool} asks for {self.config.data.train_batch_size} candidates a step, "
                "and the training data have fewer: use a smaller pool, or a smaller data.train_batch_size"
            )
        if self.settings.belief_half_life is None:
            self._fade(float(FADING_PASSES * max(self.trainer.steps_per_epoch, 1)))
        if self.settings.trace_file is not None:
            run = {
                "engine": "verl",
                "method": self.settings.allocation,
                "seed": self.config.data.get("seed"),
                "settings": vars(self.settings) | {name: select(self.config, name) for name in _TRACED},
            }
            self.session.open_trace(self.folder / self.settings.trace_file, run)

    def _fade(self, half_life: float) -> None:
        """Make the allocator again with this half-life, in which limits may be counted too, and keep its beliefs."""
        beliefs = self.session.allocator.beliefs  # type: ignore[attr-defined]  # made by Settings
        if isinstance(beliefs, PosteriorBeliefs):
            beliefs.half_life = half_life
        allocator = replace(self.settings, belief_half_life=half_life).make_allocator(self.features)
        allocator.beliefs = beliefs
        self.session.allocator = allocator

    def step_learned(self, step: int) -> None:
        """Every outcome that training step ``step`` (from 1) will teach is learned.

        If verl saves a checkpoint at its end, the beliefs are put there now: `SaveBeliefs` is called only after verl
        has marked its checkpoint as complete, and a run killed between the two would go on without them.
        """
        last, every = step >= self.trainer.total_training_steps, self.config.trainer.save_freq
        if every > 0 and (last or step % every == 0):
            self.save(self.folder / f"global_step_{step}")
        if last and self.session.trace is not None:
            self.session.trace.end("finished")
            self.session.trace = None  # stragglers of the asynchronous modes may still come

    def save(self, checkpoint: Path) -> None:
        """Write the beliefs beside verl's own files."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        self.session.save(checkpoint)

    def _checkpoint(self) -> Path | None:
        trainer = self.config.trainer
        found = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
        if trainer.resume_mode == "auto":
            found = find_latest_ckpt_path(str(self.folder))
        return Path(found).absolute() if found else None
