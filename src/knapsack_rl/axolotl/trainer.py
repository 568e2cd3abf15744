"""Axolotl's GRPO trainer with groups of uneven size."""

from __future__ import annotations

from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer

from knapsack_rl.trl import KnapsackMixin


class KnapsackGRPOTrainer(KnapsackMixin, AxolotlGRPOTrainer):  # type: ignore[misc]  # not in the checker's environment
    """`AxolotlGRPOTrainer` that divides every step's rollouts among its prompts by an exact knapsack."""
