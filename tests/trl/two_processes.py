"""Run by test_trl_processes.py, under torchrun or plainly: a short run whose rollouts depend on their place alone.

A rollout function answers row i of a batch by a hash of (i, prompt, step), whatever process the row is on. So one
process and two must see the same rewards, and everything that follows from them must be the same.
"""

from __future__ import annotations

import json
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import small

folder, world_size = Path(sys.argv[1]), int(sys.argv[2])
extra: dict[str, Any] = json.loads(sys.argv[3])


def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    first_row = trainer.accelerator.process_index * len(prompts)
    answers = []
    for i, prompt in enumerate(prompts):
        place = f"{first_row + i} {prompt} {trainer.generation_step}"
        answers.append([4 + blake2b(place.encode(), digest_size=1).digest()[0] % 8, 1])
    tokens = trainer.processing_class(prompts)["input_ids"]
    return {"prompt_ids": tokens, "completion_ids": answers, "logprobs": [[-1.0, -1.0] for _ in prompts]}


def remember(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    rewards = small.reward(completions, answer)
    scored.append([prompts, rewards])
    return rewards


scored: list[Any] = []
resume = extra.pop("resume", None)
rollouts_of_the_model = extra.pop("sample", False)
trainer = small.knapsack(
    folder,
    [remember],
    small.dataset(24),
    arguments={} if rollouts_of_the_model else {"rollout_func": rollout},
    per_device_train_batch_size=32 // world_size,
    resume=resume,
    **extra,
)
rank = trainer.accelerator.process_index
kept = trainer.kept
report = {
    "kept": None if kept is None else {name: value.tolist() for name, value in kept.state_dict().items()},
    "kept_used": sum(used or 0 for (used,) in small.logged(trainer, "knapsack/kept_used")),
    "world_size": trainer.accelerator.num_processes,
    "scored": scored,
    "advantages": list(trainer._logs["advantages"]),
    "weights": small.weights(trainer),
    "parameters": [
        float(p.double().sum()) for _, p in sorted(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    ],
}
(folder / f"rank{rank}.json").write_text(json.dumps(report))
