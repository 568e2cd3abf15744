"""A plugin of ms-swift: imported, it puts the trainer in the place of ms-swift's own for ``--rlhf_type grpo``."""

from __future__ import annotations

from swift.trainers import TrainerFactory

from knapsack_rl.swift.settings import read_settings

read_settings()  # a mistake in them is told before a model is loaded
TrainerFactory.TRAINER_MAPPING["grpo"] = "knapsack_rl.swift.trainer.KnapsackGRPOTrainer"
