"""What a rule or an allocator must pass before it is used in a run; strategies have `knapsack_arena.testing`.

Three lines of a test file:

    from knapsack_rl.testing import check_rule
    from my_rule import my_rule
    def test_my_rule(): check_rule(my_rule)

An `AssertionError` says which call failed, the value expected and the value found. pytest is not needed.
"""

from knapsack_rl.testing.allocators import check_allocator
from knapsack_rl.testing.rules import check_rule

__all__ = ["check_allocator", "check_rule"]
