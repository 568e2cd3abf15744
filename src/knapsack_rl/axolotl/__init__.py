"""Plugin for axolotl: groups of uneven size in ``rl: grpo`` and ``rl: gdpo``, by a few lines of its YAML."""

from knapsack_rl.axolotl.plugin import KnapsackPlugin

__all__ = ["KnapsackPlugin"]
