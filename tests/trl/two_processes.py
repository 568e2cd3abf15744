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

import placed
import small
import torch

from knapsack_rl.trl import KnapsackGRPOTrainer

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


class Recording(KnapsackGRPOTrainer):
    """Keeps this process's rows of every batch, without padding: tokens, advantage, old log-probabilities."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        rows = []
        for i, mask in enumerate(batch["completion_mask"].bool()):
            old = batch["old_per_token_logps"][i][mask].tolist() if "old_per_token_logps" in batch else []
            rows.append([batch["completion_ids"][i][mask].tolist(), float(batch["advantages"][i]), old])
        batches.append(rows)
        return batch


scored: list[Any] = []
batches: list[Any] = []
resume = extra.pop("resume", None)
# Whose rollouts: those of the function above, samples of the model, or what the model is made to say by placed.py.
rollouts = extra.pop("rollouts", "function")
# What all prompts begin with.
begins = extra.pop("begins", "")
trainer = small.knapsack(
    folder,
    [remember],
    small.dataset(extra.pop("prompts", 24)).map(lambda row: {"prompt": begins + row["prompt"]}),
    arguments={"rollout_func": rollout} if rollouts == "function" else {},
    per_device_train_batch_size=32 // world_size,
    train=False,
    trainer_class=Recording,
    **extra,
)
if rollouts == "placed":
    placed.answer_by_place(trainer)
trainer.train(resume_from_checkpoint=resume)
rank = trainer.accelerator.process_index
kept = trainer.kept
report = {
    "kept": None if kept is None else {name: value.tolist() for name, value in kept.state_dict().items()},
    "kept_used": sum(used or 0 for (used,) in small.logged(trainer, "knapsack/kept_used")),
    "world_size": trainer.accelerator.num_processes,
    "continues": trainer._shared_prefix.works,
    "scored": scored,
    "batches": batches,
    "advantages": list(trainer._logs["advantages"]),
    "weights": small.weights(trainer),
    "parameters": [
        float(p.double().sum()) for _, p in sorted(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    ],
    "every_parameter": torch.cat([p.detach().flatten() for _, p in sorted(trainer.model.named_parameters())]).tolist(),
}
(folder / f"rank{rank}.json").write_text(json.dumps(report))
