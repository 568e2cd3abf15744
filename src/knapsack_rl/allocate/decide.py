"""Divide a budget over the prompts of a file: its pass rates as beliefs, a rule, and the library's allocator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from knapsack_rl.allocate.rows import Evidence
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.config import AllocationConfig, RuleName
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rules import AllocationProblem, expected_value, paper_rule, uniform_rule
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals

# (rows, stop) -> value of each further rollout, [len(rows), stop].
MarginalValues: TypeAlias = Callable[[IntArray, int], FloatArray]


@dataclass(frozen=True, eq=False)
class Decision:
    """A plan, the marginal values that explain it, and the rollouts of the smallest group, which are bought as one."""

    plan: Plan
    marginals: MarginalValues
    min_group: int


@dataclass(frozen=True, eq=False)
class _Counted(Outcomes):
    """Outcomes that are known as counts: a table may hold a million attempts of a prompt, or half of one."""

    given: tuple[FloatArray, FloatArray] = (np.zeros(0), np.zeros(0))  # successes and attempts, [P] each

    @property
    def successes_P(self) -> FloatArray:  # type: ignore[override]
        return self.given[0]

    @property
    def attempts_P(self) -> FloatArray:  # type: ignore[override]
        return self.given[1]


def decide(
    evidence: Evidence,
    rule: RuleName,
    budget: int,
    min_count: int,
    max_count: int,
    min_group: int = AllocationConfig.min_group,
) -> Decision:
    """Divide a budget over prompts.

    Args:
        evidence: pass rates and attempts of the prompts.
        rule: ``calibrated`` (expected value under the beliefs of a run that has observed these rows, all in its last
            step, without a look at the prompts), ``beta`` (likewise, under a Beta belief with Jeffreys' prior of each
            prompt by itself), ``paper`` (the authors' rule; prompts with fewer than 8 attempts count as unseen), or
            ``uniform`` (equal counts, without limits; values are those of ``beta``). With the first two, a rate without
            attempts is exact, and its value is the paper's.
        budget: rollouts in all.
        min_count, max_count: least and most rollouts of a prompt.
        min_group: a prompt gets none, or at least so many.

    Raises:
        ValueError: limits that make no sense, or a budget that they cannot meet.
    """
    size = len(evidence.prompt_ids)
    if rule == "uniform" and 2 * size <= budget < min_group * size:
        raise ValueError(
            f"a budget of {budget} rollouts gives {budget // size} to each of {size} prompts, below the smallest group "
            f"({min_group}): give at least {min_group * size}, or lower the smallest group"
        )
    made = {"paper": _paper_forecast, "calibrated": _calibrated_forecast}.get(rule, _beta_forecast)
    forecast = made(evidence)
    by_value = paper_rule if rule == "paper" else _expected_or_exact_value
    used = uniform_rule if rule == "uniform" else by_value
    allocator = KnapsackAllocator(StaticBeliefs(forecast), used, min_count, max_count, min_group=min_group)
    plan = allocator.plan(evidence.prompt_ids, budget, step=0)
    marginals = by_value(forecast, budget, min_count, max_count).marginals
    assert callable(marginals)
    return Decision(plan, marginals, min_group)


def _calibrated_forecast(evidence: Evidence) -> Forecast:
    """What calibrated beliefs say after one observation of all rows; rates without attempts are exact."""
    exact_P = np.isinf(evidence.attempts_P)
    attempts_P = np.where(exact_P, 0, evidence.attempts_P)
    beliefs = CalibratedBeliefs()
    ids, none = evidence.prompt_ids, np.zeros(attempts_P.size, dtype=np.int64)
    beliefs.observe(_Counted(0, ids, none, np.zeros(0), given=(evidence.rates_P * attempts_P, attempts_P)))
    forecast = beliefs.forecast(ids, 0)
    return replace(
        forecast,
        success_rates_P=np.where(exact_P, evidence.rates_P, forecast.success_rates_P),
        pseudo_count_P=np.where(exact_P, np.inf, forecast.pseudo_count_P),
        seen_P=exact_P | forecast.seen_P,
    )


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
