"""The classes that verl is told to use. All but `CheckConfig` live in verl's task runner process and share one run.

verl makes them in this order: `SaveBeliefs` (with its trainer), the replay buffer, and, when models and data are ready,
the agent loop manager.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback
from omegaconf import open_dict
from tensordict import NonTensorStack
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1 import AgentLoopManagerTQ

from knapsack_rl.verl.buffers import PROMPT_FIELD, KnapsackReplayBuffer, KnapsackReplayBufferAsync, column
from knapsack_rl.verl.run import prompt_ids
from knapsack_rl.verl.settings import ConfigError, check_config
from knapsack_rl.verl.shared import SharedRun
from knapsack_rl.verl.weighting import per_prompt

__all__ = [
    "CheckConfig",
    "KnapsackAgentLoopManager",
    "KnapsackReplayBuffer",
    "KnapsackReplayBufferAsync",
    "SaveBeliefs",
]


class CheckConfig(Callback):  # type: ignore[misc]  # hydra is Any to the checker
    """Checks the configuration in the driver, before Ray starts, whichever of verl's trainers is run."""

    def on_run_start(self, config: Any, **kwargs: Any) -> None:
        """Stop with one line if the configuration cannot work; Hydra would turn any other exception into a warning."""
        try:
            check_config(config)
        except ConfigError as error:
            raise SystemExit(f"knapsack-rl: error: {error}") from error


class SaveBeliefs(CheckpointCallback):  # type: ignore[misc]  # verl ships no types
    """Begins the run, and saves its beliefs with every checkpoint."""

    def __init__(self, config: Any = None) -> None:
        """Check verl's whole configuration, and take up the beliefs of the checkpoint that it resumes from.

        With a pool, the configuration's batch becomes the candidates of a step, and its passes over the data as many
        more, so that the number of steps stays.

        Raises:
            ConfigError: a configuration that cannot work.
            CheckpointError, BeliefFileError: beliefs that are damaged, or of another method.
        """
        super().__init__(config)
        settings = check_config(config)
        SharedRun.current = SharedRun(config, settings)
        if settings.pool > 1:  # in this same object, which the trainer makes its data loader from: later, too
            config.data.train_batch_size *= settings.pool
            config.trainer.total_epochs *= settings.pool
        if settings.group_weighting == "prompt":
            with open_dict(config):  # the trainer reads its estimator from this same object, later
                config.algorithm.adv_estimator = per_prompt(config.algorithm.adv_estimator)

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **_: Any) -> None:
        """Write the beliefs beside verl's own files."""
        SharedRun.get().save(Path(checkpoint_dir))


class KnapsackAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]  # verl ships no types
    """Asks for the planned number of rollouts of each prompt."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """verl's own arguments."""  # noqa: D403  verl spells itself so
        if SharedRun.current is None:
            check_config(config)  # of our classes, the legacy trainers make this one only: name them
        super().__init__(config, *args, **kwargs)
        self.run = SharedRun.get()
        self.run.begin()

    def generate_sequences(self, prompts: Any) -> None:
        """Plan a batch of training prompts, of any size, and send it out; validation stays uniform."""
        if "validate" not in prompts or not prompts["validate"]:
            uids, texts = column(prompts, "uid"), column(prompts, "raw_prompt")
            ids = prompt_ids(
                self.run.settings.prompt_id, column(prompts, "index"), column(prompts, "data_source"), texts
            )
            # Steps as verl counts them, so that refills do not age the beliefs.
            plan = self.run.plan(uids, ids, self.run.budget(len(ids)), int(prompts["global_steps"]) - 1, texts)
            prompts["__rollout_n__"] = torch.from_numpy(plan.counts_P.copy())
            prompts[PROMPT_FIELD] = NonTensorStack(*ids)
        super().generate_sequences(prompts)
