"""Our replay buffers with a short poll interval, and a record of the rewards and advantages that verl computes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from verl.trainer.ppo.v1 import trainer_base

from knapsack_rl.verl import KnapsackReplayBuffer, KnapsackReplayBufferAsync

LOG = Path(os.environ["WORLD_FOLDER"]) / "advantages.jsonl"

_compute = trainer_base.compute_advantage_for_multi_trajectories


def _watched(data: Any, *, batch_keys: list[str], **kwargs: Any) -> Any:
    rewards = data.batch["token_level_rewards"].sum(-1).tolist()
    data = _compute(data, batch_keys=batch_keys, **kwargs)
    mask = data.batch["response_mask"]
    advantages = ((data.batch["advantages"] * mask).sum(-1) / mask.sum(-1).clamp(min=1)).tolist()
    with LOG.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"keys": batch_keys, "rewards": rewards, "advantages": advantages}) + "\n")
    return data


trainer_base.compute_advantage_for_multi_trajectories = _watched


class FastBuffer(KnapsackReplayBuffer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, poll_interval=0.05)


class FastBufferAsync(KnapsackReplayBufferAsync):
    """With WORLD_WAITS it samples only when no group is being generated: which groups are there is then no race."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, poll_interval=0.05)
        self.waits = bool(os.environ.get("WORLD_WAITS"))

    def _has_enough_samples(self, global_steps: int, partition_id: str, *args: Any) -> bool:
        coming = self.pending_keys[partition_id] | self.running_keys[partition_id]
        enough = super()._has_enough_samples(global_steps, partition_id, *args)
        return enough and not (self.waits and coming)
