"""GRPO with knapsack-allocated groups on TRL: change one import and every step spends its rollouts where they teach."""

from knapsack_rl.trl.config import KnapsackGRPOConfig
from knapsack_rl.trl.trainer import KnapsackGRPOTrainer, KnapsackMixin

__all__ = ["KnapsackGRPOConfig", "KnapsackGRPOTrainer", "KnapsackMixin"]
