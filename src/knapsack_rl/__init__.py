"""Spend a fixed budget of rollouts where it teaches.

    belief ──► value ──► knapsack ──► plan ──► rollouts ──► outcomes ──► belief
    what we     what n     how to       N_i per   jobs on      rewards     what we
    think p is  rollouts   spend the    prompt    the engine   per group   think now
                are worth  budget

An allocator goes around once a step: ``plan(prompt_ids, budget, step)``, then ``observe(outcomes)``. Trainers are
imported by their path (`knapsack_rl.trl`), so that this import needs numpy alone.
"""

from __future__ import annotations

from knapsack_rl.allocator import Allocator, KnapsackAllocator, Offer, make_allocator
from knapsack_rl.beliefs import Beliefs, Forecast, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.ids import content_id
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rollouts import deal, jobs
from knapsack_rl.solution import Solution
from knapsack_rl.solver import solve, solve_table
from knapsack_rl.table import BeliefFileError
from knapsack_rl.values import expected_knapsack_value, knapsack_value

__version__ = "0.1.0"

__all__ = [
    "Allocator",
    "BeliefFileError",
    "Beliefs",
    "Forecast",
    "KnapsackAllocator",
    "Offer",
    "Outcomes",
    "PaperBeliefs",
    "Plan",
    "PosteriorBeliefs",
    "Solution",
    "__version__",
    "content_id",
    "deal",
    "expected_knapsack_value",
    "jobs",
    "knapsack_value",
    "make_allocator",
    "solve",
    "solve_table",
]
