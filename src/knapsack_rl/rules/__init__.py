"""Allocation rules: functions from forecasts to allocation problems, one per file."""

from knapsack_rl.rules.expected_value import expected_value
from knapsack_rl.rules.oracle import oracle_rule
from knapsack_rl.rules.paper import paper_rule
from knapsack_rl.rules.problem import AllocationProblem, AllocationRule
from knapsack_rl.rules.uniform import uniform_rule

__all__ = ["AllocationProblem", "AllocationRule", "expected_value", "oracle_rule", "paper_rule", "uniform_rule"]
