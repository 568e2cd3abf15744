"""Drop-in GRPO trainer for TRL whose group sizes are allocated by an exact knapsack."""

from knapsack_rl.trl.config import KnapsackGRPOConfig
from knapsack_rl.trl.trainer import KnapsackGRPOTrainer, KnapsackMixin

__all__ = ["KnapsackGRPOConfig", "KnapsackGRPOTrainer", "KnapsackMixin"]
