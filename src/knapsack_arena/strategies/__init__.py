"""Strategies: rules that need several rounds of rollouts in one step, and the function that runs them."""

from knapsack_arena.strategies.pilot import PilotThenRest
from knapsack_arena.strategies.protocol import (
    Batch,
    OneRound,
    RolloutRequest,
    StepGenerator,
    StepResult,
    StepSpec,
    Strategy,
    run_step,
    take_unseen,
)

__all__ = [
    "Batch",
    "OneRound",
    "PilotThenRest",
    "RolloutRequest",
    "StepGenerator",
    "StepResult",
    "StepSpec",
    "Strategy",
    "run_step",
    "take_unseen",
]
