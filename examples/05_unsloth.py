"""Unsloth with two names changed: LoRA on one GPU, the same number of rollouts per step, planned.

    python examples/05_unsloth.py

Needs knapsack-rl[unsloth] and a GPU. The tasks are small ones that need no download: replace them, the model and the
reward function with your own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from unsloth import FastLanguageModel  # isort: skip  # first: it replaces TRL's trainer and config

from datasets import Dataset

from knapsack_rl.tasks.embedded import splits
from knapsack_rl.tasks.rewards import exact_match
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer

model, tokenizer = FastLanguageModel.from_pretrained("unsloth/Qwen2.5-0.5B-Instruct", max_seq_length=256)
model = FastLanguageModel.get_peft_model(
    model, r=16, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
)
dataset = Dataset.from_list(splits(train=64, heldout=0)[0])  # columns: prompt, answer, prompt_id
folder = tempfile.mkdtemp(prefix="knapsack-rl-")

config = KnapsackGRPOConfig(  # what is not named here has Unsloth's own default
    output_dir=folder,
    num_generations=8,  # on average; which prompts are trained on, and how many rollouts each gets, is planned
    per_device_train_batch_size=32,
    gradient_accumulation_steps=2,  # so a step has 64 rollouts
    max_completion_length=16,
    max_steps=6,
    report_to="none",
)
trainer = KnapsackGRPOTrainer(
    model=model, processing_class=tokenizer, reward_funcs=exact_match, args=config, train_dataset=dataset
)
trainer.train()

print("\nstep: rollouts of each prompt that was trained on")
for step in read_trace(Path(folder) / "trace.jsonl").steps:
    print(f"{step.plan.step:4d}: {sorted(step.plan.counts_P[step.plan.counts_P > 0].tolist(), reverse=True)}")
