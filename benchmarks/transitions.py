"""Transition matrices printed in CoBA-RL's paper, and simulated runs measured in two ways.

Printed: arXiv 2602.03048 v3, transition matrices of Qwen2.5-7B-Instruct, in percent of a row: status before training
(row) to status after it (column), 256 prompts x 16 rollouts a step on DAPO-Math-17k, about 1,000 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.simulator import PRESETS, LearnerSettings, Simulation
from knapsack_arena.strategies import StepResult, StepSpec, run_step
from knapsack_rl.metrics import transition_matrix
from knapsack_rl.notation import FloatArray

GRPO = np.array(
    [
        [68.7, 9.9, 11.3, 6.0, 4.1],
        [15.0, 13.3, 31.6, 22.7, 17.3],
        [1.2, 2.2, 18.5, 31.3, 46.8],
        [0.2, 0.1, 4.5, 21.3, 74.0],
        [0.0, 0.0, 1.0, 7.5, 91.6],
    ]
)
KNAPSACK = np.array(
    [
        [56.9, 10.9, 19.8, 6.4, 5.9],
        [8.3, 8.7, 43.9, 18.7, 20.4],
        [0.5, 0.7, 24.4, 24.5, 50.0],
        [0.5, 0.0, 7.9, 10.4, 81.1],
        [0.3, 0.0, 3.0, 2.6, 94.1],
    ]
)
# Smaller differences than this, in points, are not compared.
DECIDED = 2.0
PROMPTS, GROUPS, STEPS, TRIES = 17_000, 256, 1_000, 16


@dataclass
class Run:
    """A simulated run: true rates before and after, pass rates in the run, and shares of mixed groups by step."""

    before_P: FloatArray
    after_P: FloatArray
    held_out: float
    first_P: FloatArray
    last_P: FloatArray
    ever_solved_P: FloatArray
    rollouts: list[float] = field(default_factory=list)
    prompts: list[float] = field(default_factory=list)
    most: int = 0

    def by_new_rollouts(self, seed: int = 0) -> FloatArray:
        """The matrix, in percent of a row, by 16 new rollouts of every prompt before and after."""
        rng = np.random.default_rng(seed)
        return percent(rng.binomial(TRIES, self.before_P) / TRIES, rng.binomial(TRIES, self.after_P) / TRIES)

    def by_own_rollouts(self) -> FloatArray:
        """The matrix by the run's own rollouts: those of a prompt's first and last visits."""
        return percent(self.first_P, self.last_P)


def percent(before_P: FloatArray, after_P: FloatArray) -> FloatArray:
    """A transition matrix, in percent of each row."""
    matrix = transition_matrix(before_P, after_P)
    shares: FloatArray = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    return shares


def simulate(
    rule: str,
    preset: str = "balanced",
    *,
    each: int = 8,
    seed: int = 0,
    steps: int = STEPS,
    settings: LearnerSettings | None = None,
) -> Run:
    """A whole run of 17,000 prompts, 256 a step, ``each`` rollouts a prompt on average."""
    simulation = Simulation(PRESETS[preset](PROMPTS, seed), seed=seed, settings=settings)
    context = RuleContext(GROUPS, each, PROMPTS, seed=seed, truth=simulation.success_rates)
    strategy = make_strategy(rule, context)
    row = {prompt_id: i for i, prompt_id in enumerate(simulation.prompt_ids)}
    before_P, unseen = simulation.success_rates(), np.full(PROMPTS, np.nan)
    run = Run(before_P, before_P, 0.0, unseen, unseen.copy(), np.zeros(PROMPTS))
    for step in range(steps):
        result = run_step(strategy, StepSpec(step, GROUPS, context.budget, simulation.take), simulation.generate)
        _record(run, result, row)
        simulation.train(result.batch)
    run.after_P, run.held_out = simulation.success_rates(), float(simulation.held_out_rates().mean())
    return run


def _record(run: Run, result: StepResult, row: dict[str, int]) -> None:
    outcomes = result.batch.outcomes
    rows = np.array([row[prompt_id] for prompt_id in outcomes.prompt_ids])
    rates = outcomes.pass_rates_P
    run.first_P[rows] = np.where(np.isnan(run.first_P[rows]), rates, run.first_P[rows])
    run.last_P[rows] = rates
    run.ever_solved_P[rows] = np.maximum(run.ever_solved_P[rows], rates > 0)
    run.rollouts.append(float(outcomes.counts_P[outcomes.mixed_P].sum() / outcomes.counts_P.sum()))
    run.prompts.append(float(outcomes.mixed_P.mean()))
    run.most = max(run.most, int(outcomes.counts_P.max()))


def agreement(change: FloatArray) -> tuple[int, int]:
    """Of the cells in which the printed matrices differ by 2 points or more, how many change in the same direction."""
    printed = KNAPSACK - GRPO
    decided = np.abs(printed) >= DECIDED
    return int((np.sign(change) == np.sign(printed))[decided].sum()), int(decided.sum())


def distance(one: FloatArray, other: FloatArray) -> float:
    """Root mean square difference of two matrices, in points."""
    return float(np.sqrt(((one - other) ** 2).mean()))
