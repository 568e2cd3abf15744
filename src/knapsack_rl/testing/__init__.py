"""What any rule, allocator or strategy must pass before it is let near a run.

Three lines of a test file:

    from knapsack_rl.testing import check_rule
    from my_rule import my_rule
    def test_my_rule(): check_rule(my_rule)

Every check says in its `AssertionError` what was expected, what came, and of which call. Nothing here needs pytest.
"""

from knapsack_rl.testing.allocators import check_allocator
from knapsack_rl.testing.rules import check_rule
from knapsack_rl.testing.strategies import check_strategy
from knapsack_rl.testing.world import World

__all__ = ["World", "check_allocator", "check_rule", "check_strategy"]
