"""The classes named in verl's configuration. All but `CheckConfig` run in verl's task runner process and share one run.

verl makes them in this order: `SaveBeliefs` (with its trainer), the replay buffer, and, when models and data are ready,
the agent loop manager.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from hydra.experimental.callback import Callback
from omegaconf import open_dict
from tensordict import NonTensorStack
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils.tensordict_utils import assign_non_tensor_data, concat_tensordict, index_select_tensor_dict

from knapsack_rl.notation import FloatArray
from knapsack_rl.verl.buffers import KnapsackReplayBuffer, KnapsackReplayBufferAsync, column
from knapsack_rl.verl.looks import NextToken
from knapsack_rl.verl.rows import PROMPT_FIELD, first_offers, has_own_indices, task_ids
from knapsack_rl.verl.run import PlannedGroup, SharedRun
from knapsack_rl.verl.settings import ConfigError, check_config
from knapsack_rl.verl.weighting import per_prompt

__all__ = [
    "CheckConfig",
    "KnapsackAgentLoopManager",
    "KnapsackReplayBuffer",
    "KnapsackReplayBufferAsync",
    "SaveBeliefs",
]


logger = logging.getLogger(__name__)


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

        Raises:
            ConfigError: a configuration that cannot work.
            BeliefFileError: the saved state is damaged, or of another rule.
        """
        super().__init__(config)
        settings = check_config(config)
        SharedRun.current = SharedRun(config, settings)
        # The trainer chooses its estimator by this same object, later.
        if settings.allocation.weighting == "prompt":
            with open_dict(config):
                config.algorithm.adv_estimator = per_prompt(config.algorithm.adv_estimator)

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **_: Any) -> None:
        """Write the state beside verl's own files."""
        SharedRun.get().save(Path(checkpoint_dir))


class KnapsackAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]  # verl ships no types
    """Chooses the prompts of a training batch, and requests the planned number of rollouts of each.

    With a pool, verl's batch is one part of the candidates: the others are read from verl's data loader here. So verl's
    own batch size, steps, epochs and schedules stay as they are set.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Take verl's own arguments."""
        if SharedRun.current is None:
            check_config(config)  # the legacy trainers make no other of our classes: the error names them
        super().__init__(config, *args, **kwargs)
        self.run = SharedRun.get()
        queued = (tq.kv_list() or {}).get("train", {})
        self.run.begin(queued)
        allocation, trainer = self.run.settings.allocation, self.run.trainer
        if not self.run.stock:
            # A resumed asynchronous trainer requests prompts until it has a number of groups. Its batches are numbers
            # of rollouts here: it would request more than the run that was stopped, and skip as many rows of the data.
            rollouts = self.run.rollouts(uid for uid, tag in queued.items() if tag.get("is_prompt"))
            trainer._restored_tq_prompt_count = math.ceil(rollouts / allocation.average)
        self._own_indices = allocation.pool != 1 and has_own_indices(getattr(trainer, "train_dataset", None))
        self._left_out: set[str] = set()
        self.next_token = NextToken(config, self.llm_client) if self.run.settings.ask else None

    def generate_sequences(self, prompts: Any) -> None:
        """Plan a batch of training prompts, of any size, and submit it; validation stays uniform."""
        if "validate" not in prompts or not prompts["validate"]:
            self._generate(prompts)
        else:
            super().generate_sequences(prompts)

    def _generate(self, prompts: Any) -> None:
        uids = column(prompts, "uid")
        if all(uid in self.run.planned for uid in uids):  # verl restarts them after a resume
            self._submit(prompts, [self.run.planned[uid] for uid in uids])
            return
        # In sync mode verl waits for as many groups as it has asked to replace.
        replacing = self.run.owed > 0 and self.run.trainer.trainer_mode == "sync"
        offered = prompts if replacing else self._offered(prompts)
        budget = self.run.owed or len(uids) * self.run.settings.allocation.average
        groups = self._plan(offered, self.run.within_limits(budget, len(offered)))
        self.run.owed = 0
        if not replacing and self.run.leaves_out:
            chosen = [i for i, group in enumerate(groups) if group.rollouts]
            offered, groups = index_select_tensor_dict(offered, chosen), [groups[i] for i in chosen]
            self._register(offered, uids)
        self._submit(offered, groups)

    def _offered(self, prompts: Any) -> Any:
        """The candidates of a step: with a pool, verl's prompts and more from its data loader, each row once."""
        pool = self.run.settings.allocation.pool
        assert pool is not None
        if pool == 1:
            return prompts
        step = int(prompts["global_steps"])
        parts = [prompts, self.run.trainer._next_train_batch((pool - 1) * len(prompts))]
        offered = concat_tensordict([part.exclude("global_steps") for part in parts])
        if self._own_indices:  # a step may take in the end of a pass over the data and the beginning of the next
            first = first_offers(column(offered, "data_source"), column(offered, "index"))
            offered = index_select_tensor_dict(offered, first)
        assign_non_tensor_data(offered, "global_steps", step)
        return offered

    def _plan(self, offered: Any, budget: int) -> list[PlannedGroup]:
        known, run = len(self._left_out), self.run
        with run.session.working():
            columns = {name: column(offered, name) for name, _ in offered.items() if name != "global_steps"}
            key = self.config.data.get("prompt_key", "prompt")
            ids = task_ids(run.settings.prompt_id, run.session.id_version, columns, key, self._left_out)
        if len(self._left_out) > known:
            logger.warning(
                "no id can be made of the columns %s: rows that differ in these alone share a belief; give every row a "
                "column prompt_id to tell them apart",
                ", ".join(sorted(self._left_out)),
            )
        # Steps as verl counts them, so that replacements do not age the beliefs.
        step = int(offered["global_steps"]) - 1
        return run.plan(ids, budget, step, columns["raw_prompt"], self._asked(columns["raw_prompt"]))

    def _asked(self, prompts: Sequence[Any]) -> FloatArray | None:
        """Log-probability of the next token of each candidate; None if the engine is not asked."""
        if self.next_token is None:
            return None
        with self.run.session.working():
            began = time.perf_counter()
            log_prob_P = self.next_token.log_probs(prompts)
        unknown = float(np.isnan(log_prob_P).mean())
        self.run.looked = {"look_seconds": time.perf_counter() - began, "look_unknown": unknown}
        return log_prob_P

    def _register(self, chosen: Any, uids: Sequence[str]) -> None:
        """Put the chosen prompts into verl's queue in place of ``uids``, which verl has put there."""
        names = column(chosen, "uid")
        kept, known = set(names), set(uids)
        left_out = [uid for uid in uids if uid not in kept]
        added = [i for i, uid in enumerate(names) if uid not in known]
        if left_out:
            tq.kv_clear(keys=left_out, partition_id="train")
        if added:
            tag = {"is_prompt": True, "status": "pending", "global_steps": int(chosen["global_steps"])}
            put = {"keys": [names[i] for i in added], "partition_id": "train", "tags": [dict(tag) for _ in added]}
            if self.run.trainer.trainer_mode != "sync":  # for checkpoints of unfinished groups, as verl does
                rows = index_select_tensor_dict(chosen, added)
                put["fields"] = rows.exclude("global_steps")
            tq.kv_batch_put(**put)

    def _submit(self, prompts: Any, groups: Sequence[PlannedGroup]) -> None:
        self.run.planned.update(zip(column(prompts, "uid"), groups, strict=True))
        prompts["__rollout_n__"] = torch.tensor([group.rollouts for group in groups])
        prompts[PROMPT_FIELD] = NonTensorStack(*(group.prompt_id for group in groups))
        super().generate_sequences(prompts)
