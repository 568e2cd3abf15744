"""Spend a fixed budget of rollouts on the prompts that yield gradient.

    belief ──► value ──► knapsack ──► plan ──► rollouts ──► outcomes ──► belief
    what we     what n     how to       N_i per   jobs on      rewards     what we
    think p is  rollouts   spend the    prompt    the engine   per group   think now
                are worth  budget

A trainer drives a `Session`: ``plan(ids, budget)``, generate, ``observe(step, ids, rewards)``. Adapters are imported by
their path (`knapsack_rl.trl`), so that this import needs numpy alone.
"""

from __future__ import annotations

from knapsack_rl.advantages import group_advantages, group_statistics, prompt_weights
from knapsack_rl.allocator import Allocator, KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.beliefs.ids import content_id
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.config import AllocationConfig
from knapsack_rl.files import BeliefFileError
from knapsack_rl.knapsack.limits import Solution
from knapsack_rl.knapsack.solver import solve, solve_table
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan, jobs
from knapsack_rl.rollouts import WorkerSpeeds, deal
from knapsack_rl.rules import AllocationProblem, AllocationRule
from knapsack_rl.session import Session
from knapsack_rl.values import expected_knapsack_value, knapsack_value

__version__ = "0.1.0"

__all__ = [
    "AllocationConfig",
    "AllocationProblem",
    "AllocationRule",
    "Allocator",
    "BeliefFileError",
    "Beliefs",
    "BetaBeliefs",
    "CalibratedBeliefs",
    "Forecast",
    "KnapsackAllocator",
    "Outcomes",
    "Plan",
    "PromptFeatures",
    "Session",
    "Solution",
    "StaticBeliefs",
    "WindowBeliefs",
    "WorkerSpeeds",
    "__version__",
    "content_id",
    "deal",
    "expected_knapsack_value",
    "group_advantages",
    "group_statistics",
    "jobs",
    "knapsack_value",
    "prompt_weights",
    "solve",
    "solve_table",
]
