"""The loop's decision: belief -> value -> knapsack -> plan, one statement per arrow, and outcomes -> belief."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np

from knapsack_rl.beliefs import Beliefs, Forecast, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.calibrated import CalibratedBeliefs, Features
from knapsack_rl.limits import equal_counts, overdue, paper_limits, same_limits
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.solver import Marginals, solve
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals

Method = Literal["calibrated", "posterior", "paper", "uniform"]

# Share of a step's rollouts that may go to prompts for no other reason than that they have waited too long, and the
# half-lives after which they have: by then what was seen of them counts a quarter.
OVERDUE_SHARE, OVERDUE_HALF_LIVES = 1 / 8, 2.0


class Allocator(Protocol):
    """Decides how many rollouts each prompt of a step gets, and learns from what they bring."""

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        """Divide ``budget`` rollouts among the prompts. Changes nothing: the same call gives the same plan."""
        ...

    def observe(self, outcomes: Outcomes) -> None:
        """Learn from outcomes, of this step or of an earlier one."""
        ...

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        ...

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        ...


@dataclass(frozen=True, eq=False)
class Offer:
    """What the knapsack may choose from: the worth of each rollout, and the limits on each prompt."""

    marginals: Marginals
    low_P: IntArray
    high_P: IntArray


# A method is what it believes and what it then offers the knapsack: (forecast, budget, least, most) -> offer.
Rule: TypeAlias = Callable[[Forecast, int, int, int], Offer]


class KnapsackAllocator:
    """Plans by an exact knapsack over what a rule makes of the beliefs.

    The bare constructor is our vetted setting: Beta beliefs with forgetting and the expected value under them.
    """

    def __init__(
        self,
        beliefs: Beliefs | None = None,
        rule: Rule | None = None,
        min_count: int = 2,
        max_count: int = 128,
        max_idle: float | None = None,
        overdue_share: float = OVERDUE_SHARE,
    ) -> None:
        """An allocator that plans ``min_count..max_count`` rollouts a prompt.

        Args:
            beliefs: what to forecast success rates with; `PosteriorBeliefs` by default.
            rule: what the forecasts make worth how much; `expected_value` by default.
            min_count: least rollouts of a prompt: 0 (prompts may be left out) or at least 2.
            max_count: most rollouts of a prompt.
            max_idle: steps without an observation after which a prompt that is offered gets a pair of rollouts whatever
                is believed of it, so that none is left out for ever; None: no such promise.
            overdue_share: share of the budget that such pairs may take together; the longest idle come first, and one
                always may.

        Raises:
            ValueError: limits that allow a group of one, or that cross; a promise that makes no sense.
        """
        if min_count < 0 or min_count == 1:
            raise ValueError(f"min_count is {min_count}: a group of one has no gradient, use 0 or at least 2")
        if max_count < max(min_count, 2):
            raise ValueError(f"max_count is {max_count}: it must be at least 2 and at least min_count ({min_count})")
        if max_idle is not None and not max_idle > 0:
            raise ValueError(f"max_idle is {max_idle}: it counts steps and must be positive, or None")
        if not 0 < overdue_share <= 1:
            raise ValueError(f"overdue_share is {overdue_share}: it must be above 0 and at most 1")
        self.beliefs: Beliefs = PosteriorBeliefs() if beliefs is None else beliefs
        self.rule: Rule = expected_value if rule is None else rule
        self.min_count, self.max_count = min_count, max_count
        self.max_idle, self.overdue_share = max_idle, overdue_share

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        """Divide ``budget`` rollouts among the prompts.

        Raises:
            ValueError: no prompts, or a budget that the limits cannot meet.
        """
        if not prompt_ids:
            raise ValueError("there are no prompts to plan for: pass at least one")
        forecast = self.beliefs.forecast(prompt_ids, step)
        offer = self.rule(forecast, budget, self.min_count, self.max_count)
        low_P = self._kept_promises(offer, forecast, prompt_ids, budget)
        solution = solve(offer.marginals, budget, low_P, offer.high_P)
        return Plan(
            step=step,
            prompt_ids=tuple(prompt_ids),
            counts_P=solution.counts_P,
            budget=budget,
            low_P=low_P,
            high_P=offer.high_P,
            success_rates_P=forecast.success_rates_P,
            strength_P=forecast.strength_P,
            seen_P=forecast.seen_P,
            price=solution.price,
        )

    def _kept_promises(self, offer: Offer, forecast: Forecast, prompt_ids: Sequence[str], budget: int) -> IntArray:
        """Lower limits under which those that are overdue get a pair, where the rule could leave them out; ``[P]``."""
        if self.max_idle is None or forecast.idle_P is None:
            return offer.low_P
        open_P = (offer.low_P == 0) & (offer.high_P >= 2)
        pairs = min(max(int(budget * self.overdue_share) // 2, 1), (budget - int(offer.low_P.sum())) // 2)
        overdue_P = overdue(prompt_ids, np.where(open_P, forecast.idle_P, 0), self.max_idle, pairs)
        return np.where(overdue_P, 2, offer.low_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Learn from outcomes, of this step or of an earlier one."""
        self.beliefs.observe(outcomes)

    def save(self, path: Path) -> None:
        """Write the beliefs to a file, all or nothing."""
        self.beliefs.save(path)

    def load(self, path: Path) -> None:
        """Take up beliefs that `save` wrote.

        Raises:
            BeliefFileError: the file is missing, damaged, of a later version, or of another method.
        """
        self.beliefs.load(path)


def expected_value(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Our rule: every prompt is worth its expected value under its Beta belief; there are no special cases."""
    alpha_P, beta_P = forecast.alpha_P, forecast.beta_P

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        return expected_knapsack_marginals(alpha_P[rows], beta_P[rows], stop)

    return Offer(marginals, *same_limits(alpha_P.size, low, high))


def paper_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """The authors' rule: the value at the point estimate, and their special cases as limits.

    Knapsack RL (arXiv 2509.25849) spends the budget where the sum of Value(n, p) = (1 - p^n - (1-p)^n) p (1-p)^2 is
    greatest. Degenerate cases: p = 0, p = 1 and never seen have no value, and get what `paper_limits` says.
    """
    limits = paper_limits(forecast.success_rates_P, forecast.seen_P, budget, low, high)
    return Offer(_value_at(forecast.success_rates_P), *limits)


def oracle_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """The value at rates that are known: what the paper's rule would do if it were never wrong.

    No special cases: a prompt at exactly 0 or 1 is worth nothing, and gets the least there is.
    """
    return Offer(_value_at(forecast.success_rates_P), *same_limits(forecast.seen_P.size, low, high))


def uniform_rule(forecast: Forecast, budget: int, low: int, high: int) -> Offer:
    """Stock GRPO (arXiv 2402.03300): the same count for every prompt, whatever is believed.

    What does not divide goes to the first prompts, one each; limits do not apply.
    """
    counts_P = equal_counts(forecast.seen_P.size, budget)
    return Offer(np.zeros((counts_P.size, int(counts_P.max()))), counts_P, counts_P)


def _value_at(rates_P: FloatArray) -> Marginals:
    """The paper's value at point estimates."""
    return lambda rows, stop: knapsack_marginals(rates_P[rows], stop)


def make_allocator(
    method: Method = "posterior",
    min_count: int = 2,
    max_count: int = 128,
    half_life: float = 64.0,
    features: Features | None = None,
) -> KnapsackAllocator:
    """The allocator of a named method.

    Args:
        method: ``calibrated`` (beliefs that learn from their own forecasts), ``posterior`` (Beta beliefs from a
            prompt's own counts), ``paper`` (the authors') or ``uniform`` (stock GRPO; it still learns beliefs, so that
            a trace shows what was known).
        min_count, max_count: limits on a prompt's rollouts. With a least count of 0 prompts may be left out, but none
            for ever: one that is offered after two half-lives without an observation gets a pair.
        half_life: steps after which an observation counts half (all but ``paper``).
        features: what prompts look like (``calibrated`` alone): see `CalibratedBeliefs`.

    Raises:
        ValueError: an unknown method, limits that make no sense, or features for a method that has no use for them.
    """
    if features is not None and method != "calibrated":
        raise ValueError(f"allocation {method!r} has no use for features of prompts: choose 'calibrated', or give none")
    max_idle = OVERDUE_HALF_LIVES * half_life if min_count == 0 else None
    limits = (min_count, max_count, max_idle)
    match method:
        case "calibrated":
            return KnapsackAllocator(CalibratedBeliefs(half_life, features), expected_value, *limits)
        case "posterior":
            return KnapsackAllocator(PosteriorBeliefs(half_life), expected_value, *limits)
        case "paper":
            return KnapsackAllocator(PaperBeliefs(), paper_rule, *limits)
        case "uniform":
            return KnapsackAllocator(PosteriorBeliefs(half_life), uniform_rule, *limits)
    raise ValueError(f"there is no allocation method {method!r}: choose from {', '.join(get_args(Method))}")
