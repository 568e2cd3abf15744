"""Options beside the knapsack that change rewards or advantages."""

from knapsack_rl.shaping.lengths import LengthBudget
from knapsack_rl.shaping.rarity import Rarity, by_embedding, by_final_expression

__all__ = ["LengthBudget", "Rarity", "by_embedding", "by_final_expression"]
