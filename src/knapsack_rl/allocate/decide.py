"""Divide a budget over the prompts of a file: its pass rates as beliefs, a rule, and the library's allocator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from knapsack_rl.allocate.rows import Evidence
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.plan import Plan
from knapsack_rl.rules import AllocationProblem, AllocationRule, expected_value, paper_rule, uniform_rule
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals

FileRule: TypeAlias = Literal["beta", "paper", "uniform"]

# (rows, stop) -> value of each further rollout, [len(rows), stop].
MarginalValues: TypeAlias = Callable[[IntArray, int], FloatArray]


@dataclass(frozen=True, eq=False)
class Decision:
    """A plan, and the marginal values that explain it."""

    plan: Plan
    marginals: MarginalValues


def decide(evidence: Evidence, rule: FileRule, budget: int, min_count: int, max_count: int) -> Decision:
    """Divide a budget over prompts.

    Args:
        evidence: pass rates and attempts of the prompts.
        rule: ``beta`` (expected value under a Beta belief with Jeffreys' prior; a rate without attempts is exact, and
            its value is the paper's), ``paper`` (the authors' rule; prompts with fewer than 8 attempts count as
            unseen), or ``uniform`` (equal counts, without limits; values are those of ``beta``).
        budget: rollouts in all.
        min_count, max_count: least and most rollouts of a prompt.

    Raises:
        ValueError: limits that make no sense, or a budget that they cannot meet.
    """
    forecast = _paper_forecast(evidence) if rule == "paper" else _beta_forecast(evidence)
    allocator = KnapsackAllocator(StaticBeliefs(forecast), RULES[rule], min_count, max_count)
    plan = allocator.plan(evidence.prompt_ids, budget, step=0)
    valued = paper_rule if rule == "paper" else _expected_or_exact_value
    marginals = valued(forecast, budget, min_count, max_count).marginals
    assert callable(marginals)
    return Decision(plan, marginals)


def _beta_forecast(evidence: Evidence) -> Forecast:
    """Beta beliefs from counts; infinite attempts give an infinite pseudo-count."""
    alpha, beta = BetaBeliefs().prior
    prior = alpha + beta
    attempts_P = evidence.attempts_P
    prior_share_P = prior / (attempts_P + prior)
    rates_P = evidence.rates_P * (1 - prior_share_P) + alpha / prior * prior_share_P
    return Forecast(rates_P, attempts_P + prior, attempts_P > 0, np.full(attempts_P.size, np.nan))


def _paper_forecast(evidence: Evidence) -> Forecast:
    """The authors' estimate: the observed rate, from a number of attempts on."""
    seen_P = evidence.attempts_P >= WindowBeliefs().min_rewards
    rates_P = np.where(seen_P, evidence.rates_P, 0.5)
    return Forecast(rates_P, evidence.attempts_P, seen_P, np.full(seen_P.size, np.nan))


def _expected_or_exact_value(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """`expected_value`, and its limit for infinite pseudo-counts: the value at the rate itself."""
    exact_P = np.isinf(forecast.pseudo_count_P)
    if not exact_P.any():
        return expected_value(forecast, budget, low, high)

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        exact = exact_P[rows]
        table = np.empty((rows.size, stop))
        table[exact] = knapsack_marginals(forecast.success_rates_P[rows[exact]], stop)
        uncertain = rows[~exact]
        alpha_P = forecast.success_rates_P[uncertain] * forecast.pseudo_count_P[uncertain]
        beta_P = forecast.pseudo_count_P[uncertain] - alpha_P
        table[~exact] = expected_knapsack_marginals(alpha_P, beta_P, stop)
        return table

    return AllocationProblem(marginals, *same_limits(exact_P.size, low, high))


RULES: Final[dict[FileRule, AllocationRule]] = {
    "beta": _expected_or_exact_value,
    "paper": paper_rule,
    "uniform": uniform_rule,
}
