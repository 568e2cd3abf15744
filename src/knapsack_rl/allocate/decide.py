"""From evidence to a plan: what a file says about each prompt, as beliefs that the library's allocator can use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from knapsack_rl.allocate.rows import Evidence
from knapsack_rl.allocator import KnapsackAllocator, Offer, Rule, expected_value, paper_rule, uniform_rule
from knapsack_rl.beliefs import Forecast, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals

METHODS = ("posterior", "paper", "uniform")

# (rows, stop) -> the worth of each rollout more, [len(rows), stop].
Worth: TypeAlias = Callable[[IntArray, int], FloatArray]


@dataclass(frozen=True, eq=False)
class FixedBeliefs:
    """Beliefs that were read from a file, and learn nothing."""

    known: Forecast

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """What the file says; it holds exactly the prompts of the plan, in its order."""
        return self.known

    def observe(self, outcomes: Outcomes) -> None:
        """Nothing comes back to a file."""

    def save(self, path: Path) -> None:
        """There is nothing to keep."""

    def load(self, path: Path) -> None:
        """There is nothing to take up."""


@dataclass(frozen=True, eq=False)
class Decision:
    """A plan, and the worth of rollouts that it was (or, if uniform, could have been) decided by."""

    plan: Plan
    worth: Worth


def decide(evidence: Evidence, method: str, budget: int, min_count: int, max_count: int) -> Decision:
    """Divide a budget over the prompts of a file.

    ``posterior`` takes successes and attempts as a Beta belief, with Jeffreys' prior; a pass rate without attempts is
    taken as exact, where the expected value becomes the paper's. ``paper`` is the authors' rule: prompts with fewer
    than 8 attempts count as unseen. ``uniform`` gives equal counts and ignores the limits.

    Raises:
        ValueError: limits that make no sense, or a budget that they cannot meet.
    """
    forecast = _paper_forecast(evidence) if method == "paper" else _posterior_forecast(evidence)
    rule: Rule = {"posterior": _expected_or_exact_value, "paper": paper_rule, "uniform": uniform_rule}[method]
    allocator = KnapsackAllocator(FixedBeliefs(forecast), rule, min_count, max_count)
    plan = allocator.plan(evidence.prompt_ids, budget, step=0)
    judge = paper_rule if method == "paper" else _expected_or_exact_value
    offer = judge(forecast, budget, min_count, max_count)
    assert callable(offer.marginals)
    return Decision(plan, offer.marginals)


def _posterior_forecast(evidence: Evidence) -> Forecast:
    """A Beta belief from counts; infinite attempts stay infinite evidence."""
    prior = sum(PosteriorBeliefs().prior)
    half = PosteriorBeliefs().prior[0] / prior
    attempts_P = evidence.attempts_P
    shrink_P = prior / (attempts_P + prior)
    rates_P = evidence.rates_P * (1 - shrink_P) + half * shrink_P
    return Forecast(rates_P, attempts_P + prior, attempts_P > 0, np.full(attempts_P.size, np.nan))


def _paper_forecast(evidence: Evidence) -> Forecast:
    """The authors' estimate: the observed rate, once there are enough attempts."""
    seen_P = evidence.attempts_P >= PaperBeliefs().min_rewards
    rates_P = np.where(seen_P, evidence.rates_P, 0.5)
    return Forecast(rates_P, evidence.attempts_P, seen_P, np.full(seen_P.size, np.nan))


def _expected_or_exact_value(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Our rule, `expected_value`, and its limit where the evidence is infinite: the value at the rate itself."""
    exact_P = np.isinf(forecast.strength_P)
    if not exact_P.any():
        return expected_value(forecast, budget, low, high)

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        exact = exact_P[rows]
        table = np.empty((rows.size, stop))
        table[exact] = knapsack_marginals(forecast.success_rates_P[rows[exact]], stop)
        uncertain = rows[~exact]
        alpha_P = forecast.success_rates_P[uncertain] * forecast.strength_P[uncertain]
        beta_P = forecast.strength_P[uncertain] - alpha_P
        table[~exact] = expected_knapsack_marginals(alpha_P, beta_P, stop)
        return table

    return Offer(marginals, *same_limits(exact_P.size, low, high))
