"""Our replay buffer, and a record of the engine's tokens and their log-probabilities."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import transfer_queue as tq
from world.watched import FastBuffer

LOG = Path(os.environ["WORLD_FOLDER"]) / "generated.jsonl"
FIELDS = ("prompts", "responses", "rollout_log_probs")


class RecordingBuffer(FastBuffer):
    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        data = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=list(FIELDS))
        columns = {name: [row.tolist() for row in data[name].unbind()] for name in FIELDS}
        with LOG.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": global_steps, "keys": batch.keys, **columns}) + "\n")
        return batch, metrics
