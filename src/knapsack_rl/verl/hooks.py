"""The classes named in verl's configuration. All but `CheckConfig` run in verl's task runner process and share one run.

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
from knapsack_rl.verl.run import SharedRun, prompt_ids
from knapsack_rl.verl.settings import ConfigError, check_config
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
    """Creates the run, and saves its state with every checkpoint."""

    def __init__(self, config: Any = None) -> None:
        """Check verl's whole configuration, and load the state of the checkpoint that it resumes from.

        With a pool, multiply the batch size and the number of epochs in the configuration by it: a step is then offered
        that many prompts, and the number of steps stays.

        Raises:
            ConfigError: a configuration that cannot work.
            BeliefFileError: the saved state is damaged, or of another rule.
        """
        super().__init__(config)
        settings = check_config(config)
        SharedRun.current = SharedRun(config, settings)
        allocation = settings.allocation
        print(
            f"knapsack-rl: rule={allocation.rule}, pool={allocation.pool}, group_weighting={allocation.weighting} (in "
            "verl, pool defaults to 1, and group_weighting to 'rollout' where the estimator or the loss cannot weight "
            "by prompt)"
        )
        # The trainer reads this same object later: its data loader is made from it, and its estimator is chosen by it.
        config.data.train_batch_size *= allocation.pool
        config.trainer.total_epochs *= allocation.pool
        if allocation.weighting == "prompt":
            with open_dict(config):
                config.algorithm.adv_estimator = per_prompt(config.algorithm.adv_estimator)

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **_: Any) -> None:
        """Write the state beside verl's own files."""
        SharedRun.get().save(Path(checkpoint_dir))


class KnapsackAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]  # verl ships no types
    """Requests the planned number of rollouts of each prompt."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Take verl's own arguments."""
        if SharedRun.current is None:
            check_config(config)  # the legacy trainers make no other of our classes: the error names them
        super().__init__(config, *args, **kwargs)
        self.run = SharedRun.get()
        self.run.begin()

    def generate_sequences(self, prompts: Any) -> None:
        """Plan a batch of training prompts, of any size, and submit it; validation stays uniform."""
        if "validate" not in prompts or not prompts["validate"]:
            uids, texts = column(prompts, "uid"), column(prompts, "raw_prompt")
            ids = prompt_ids(
                self.run.settings.prompt_id, column(prompts, "index"), column(prompts, "data_source"), texts
            )
            # Steps as verl counts them, so that refills do not age the beliefs.
            plan = self.run.plan(uids, ids, int(prompts["global_steps"]) - 1, texts)
            prompts["__rollout_n__"] = torch.from_numpy(plan.counts_P.copy())
            prompts[PROMPT_FIELD] = NonTensorStack(*ids)
        super().generate_sequences(prompts)
