"""TRL with one import changed: the same number of rollouts per step, allocated by expected value.

    python examples/03_trl.py

Needs knapsack-rl[trl]; no GPU, no network. The model is a small one that is warm-started here (once, then cached), so
that the script runs in seconds: replace it with your own model, data and reward function.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from datasets import Dataset

from knapsack_rl.tasks.embedded import splits
from knapsack_rl.tasks.models import warm_started
from knapsack_rl.tasks.recipe import Recipe
from knapsack_rl.tasks.rewards import exact_match
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer

model = str(warm_started(Recipe(hidden=64, layers=2, intermediate=128, steps=100)))
dataset = Dataset.from_list(splits(train=32, heldout=32)[0])  # columns: prompt, answer, prompt_id
folder = tempfile.mkdtemp(prefix="knapsack-rl-")

config = KnapsackGRPOConfig(
    output_dir=folder,
    num_generations=8,  # on average; a prompt that is trained on gets 2 to 128
    per_device_train_batch_size=64,
    max_completion_length=8,
    max_steps=16,
    learning_rate=2e-4,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,  # slows down a model this small
    save_strategy="no",
    report_to="none",
    logging_steps=4,
    disable_tqdm=True,
)
trainer = KnapsackGRPOTrainer(model=model, reward_funcs=exact_match, args=config, train_dataset=dataset)
trainer.train()

print("\nstep: rollouts of each prompt that was trained on")
for step in read_trace(Path(folder) / "trace.jsonl").steps:
    print(f"{step.plan.step:4d}: {sorted(step.plan.counts_P[step.plan.counts_P > 0].tolist(), reverse=True)}")
