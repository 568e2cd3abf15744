"""What a strategy must pass before it is used in a comparison."""

from knapsack_arena.testing.strategies import check_strategy
from knapsack_arena.testing.world import World

__all__ = ["World", "check_strategy"]
