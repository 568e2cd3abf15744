"""The loop's decision: belief -> value -> knapsack -> plan, one statement per arrow, and outcomes -> belief."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.files import SavedToFile, State
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.knapsack.limits import whole_budget
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.knapsack.step_budget import best_budget
from knapsack_rl.notation import BoolArray, FloatArray, IntArray, PromptFeatures, text_ids
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rules import AllocationProblem, AllocationRule, expected_value

# Share of a step's rollouts that may go to prompts only because they were not observed for long.
OVERDUE_SHARE = 1 / 8
# Least share of its budget that an adaptive plan spends: the smallest step that was measured (docs/lab.md).
LEAST_BUDGET = 1 / 4


class Allocator(Protocol):
    """Decides how many rollouts each prompt of a step gets, and learns from their outcomes.

    An allocator that is given features of prompts (``features`` of the session's ``plan``) needs a parameter of that
    name in its own `plan`; it finds them in ``outcomes.features`` again.
    """

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        """Divide ``budget`` rollouts among the prompts. Changes nothing: the same call gives the same plan."""
        ...

    def observe(self, outcomes: Outcomes) -> None:
        """Learn from outcomes, of this step or of an earlier one."""
        ...

    def state_dict(self) -> State:
        """Everything learned, as arrays and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes."""
        ...


class KnapsackAllocator(SavedToFile):
    """Plans by an exact knapsack over what a rule makes of the beliefs.

    The bare constructor has Beta beliefs that decay, and the expected value under them.
    """

    def __init__(
        self,
        beliefs: Beliefs | None = None,
        rule: AllocationRule | None = None,
        min_count: int = 2,
        max_count: int = 128,
        max_idle: float | None = None,
        overdue_share: float = OVERDUE_SHARE,
        kept: KeptSuccesses | None = None,
        *,
        min_group: int = 2,
        step_cost: float | None = None,
        least_budget: float = LEAST_BUDGET,
        token_share: Callable[[int], float] | None = None,
    ) -> None:
        """An allocator that plans ``min_count..max_count`` rollouts a prompt.

        Args:
            beliefs: forecasts success rates; `BetaBeliefs` by default.
            rule: turns a forecast into an allocation problem; `expected_value` by default.
            min_count: least rollouts of a prompt: 0 (prompts may be left out) or at least 2.
            max_count: most rollouts of a prompt.
            max_idle: steps since the last observation after which an offered prompt gets a smallest group regardless of
                its forecast. None disables this.
            overdue_share: share of the budget that such groups may take together; the longest waiting come first, and
                one group is always allowed.
            kept: successes that replace a rollout of a group that fails as a whole; the trainer adds them.
                The rule is told which prompts have one. None if none are kept.
            min_group: rollouts of the smallest group: a prompt gets none, or at least so many.
            step_cost: cost of a step beside its rollouts, as a share of the budget. With it a plan spends what this
                step deserves (`knapsack_rl.knapsack.step_budget`), at most the budget. None spends the budget.
            least_budget: least share of the budget that such a plan spends.
            token_share: for a budget in tokens: a function of the step. A plan then spends at most the tokens that the
                budget's rollouts take at the mean expected length of the prompts, times this share; a rollout of a
                prompt costs its expected length. None: a budget in rollouts.

        Raises:
            ValueError: limits that allow a group of one, or that cross; a ``max_idle`` or share out of range.
        """
        _check_counts(min_count, max_count, min_group)
        if max_idle is not None and not max_idle > 0:
            raise ValueError(f"max_idle is {max_idle}: it counts steps and must be positive, or None")
        if not 0 < overdue_share <= 1:
            raise ValueError(f"overdue_share is {overdue_share}: it must be above 0 and at most 1")
        self.beliefs: Beliefs = BetaBeliefs() if beliefs is None else beliefs
        self.rule: AllocationRule = expected_value if rule is None else rule
        self.min_count, self.max_count = min_count, max_count
        self.max_idle, self.overdue_share = max_idle, overdue_share
        if step_cost is not None and not 0 <= step_cost < float("inf"):
            raise ValueError(f"step_cost is {step_cost}: it is a share of the budget, 0 or more, or None")
        if token_share is not None and step_cost is not None:
            raise ValueError("step_cost and token_share are both set: a budget is adaptive, or in tokens")
        if not 0 < least_budget <= 1:
            raise ValueError(f"least_budget is {least_budget}: it is a share of the budget, above 0 and at most 1")
        self.kept, self.min_group = kept, min_group
        self.step_cost, self.least_budget, self.token_share = step_cost, least_budget, token_share

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int, features: PromptFeatures | None = None) -> Plan:
        """Divide ``budget`` rollouts among the prompts. Changes nothing.

        Args:
            prompt_ids: the prompts to divide among; an id may occur twice.
            budget: rollouts of the step; with a ``step_cost`` the most of them, with a ``token_share`` their number at
                the mean length.
            step: generation step, from 0.
            features: what the prompts look like, for beliefs that learn from that.

        Raises:
            ValueError: no prompts, or a budget that the limits cannot meet.
            TypeError: an id that is neither text nor a whole number.
        """
        ids = text_ids(prompt_ids)
        if not ids:
            raise ValueError("there are no prompts to plan for: pass at least one")
        budget = whole_budget(budget)
        forecast = self._forecast(ids, step, features)
        problem = self.rule(forecast, budget, self.min_count, self.max_count)
        low_P = self._with_overdue(problem, forecast, ids, budget)
        tokens_P: FloatArray | None = None
        spent: float = budget
        if self.token_share is not None:
            tokens_P = _expected_tokens(forecast)
            spent = self._tokens(tokens_P, low_P, budget, step)
        elif self.step_cost is not None:
            spent = self._best_budget(problem, low_P, budget, self.step_cost, self.least_budget)
        solution = solve(problem.marginals, spent, low_P, problem.high_P, tokens_P, self.min_group)
        return Plan(
            step=step,
            prompt_ids=ids,
            counts_P=solution.counts_P,
            budget=int(solution.counts_P.sum()),
            low_P=low_P,
            high_P=problem.high_P,
            success_rates_P=forecast.success_rates_P,
            pseudo_count_P=forecast.pseudo_count_P,
            seen_P=forecast.seen_P,
            price=solution.price,
            features=features,
        )

    def observe(self, outcomes: Outcomes) -> None:
        """Learn from outcomes, of this step or of an earlier one."""
        self.beliefs.observe(outcomes)

    def save(self, path: Path | str) -> None:
        """Write everything learned to a file, all or nothing; without a copy in memory where beliefs can do that."""
        if isinstance(self.beliefs, SavedToFile):
            self.beliefs.save(path)
        else:
            super().save(path)

    def state_dict(self) -> State:
        """The state of the beliefs: a rule has none."""
        return self.beliefs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore beliefs that `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of other beliefs, or damaged.
        """
        self.beliefs.load_state_dict(state)

    def deserved(self, plan: Plan, step_cost: float, least_budget: float = LEAST_BUDGET) -> int:
        """The rollouts that the step of a plan deserves (`knapsack_rl.knapsack.step_budget`), at most its budget.

        Args:
            plan: of these beliefs, with its features if they use them.
            step_cost: cost of a step beside its rollouts, as a share of the budget.
            least_budget: least share of the budget.
        """
        forecast = self._forecast(plan.prompt_ids, plan.step, plan.features)
        problem = self.rule(forecast, plan.budget, self.min_count, self.max_count)
        return self._best_budget(problem, plan.low_P, plan.budget, step_cost, least_budget)

    def _forecast(self, ids: Sequence[str], step: int, features: PromptFeatures | None) -> Forecast:
        """What the beliefs say, and which prompts have a kept success."""
        given = () if features is None else (features,)
        forecast = self.beliefs.forecast(ids, step, *given)
        return forecast if self.kept is None else replace(forecast, kept_P=self.kept.has(ids, step))

    def _best_budget(
        self, problem: AllocationProblem, low_P: IntArray, budget: int, step_cost: float, least_budget: float
    ) -> int:
        """The rollouts that a step deserves, at most the budget; cost and least are shares of it."""
        least = min(max(math.ceil(least_budget * budget), int(low_P.sum()), self.min_group), budget)
        cost = step_cost * budget
        return best_budget(problem.marginals, least, budget, low_P, problem.high_P, cost, self.min_group)

    def _tokens(self, tokens_P: FloatArray, low_P: IntArray, budget: int, step: int) -> float:
        """The step's budget in tokens; never below what the lower limits ask for."""
        assert self.token_share is not None
        share = float(self.token_share(step))
        if not 0 < share < float("inf"):
            raise ValueError(f"token_share({step}) is {share}: it is a share of the tokens, above 0 and finite")
        return max(share * budget * float(tokens_P.mean()), float((tokens_P * low_P).sum()))

    def _with_overdue(
        self, problem: AllocationProblem, forecast: Forecast, ids: Sequence[str], budget: int
    ) -> IntArray:
        """Lower limits, raised to the smallest group for overdue prompts that the rule could leave out; ``[P]``."""
        waited_P = forecast.steps_since_observed_P
        if self.max_idle is None or waited_P is None:
            return problem.low_P
        size = self.min_group
        optional_P = (problem.low_P == 0) & (problem.high_P >= size)
        groups = min(max(int(budget * self.overdue_share) // size, 1), (budget - int(problem.low_P.sum())) // size)
        return np.where(overdue(ids, np.where(optional_P, waited_P, 0), self.max_idle, groups), size, problem.low_P)


def _check_counts(min_count: int, max_count: int, min_group: int) -> None:
    """Refuse limits that allow a group of one, or that cross."""
    if min_count < 0 or min_count == 1:
        raise ValueError(f"min_count is {min_count}: a group of one has no gradient, use 0 or at least 2")
    if min_group < 2 or 0 < min_count < min_group:
        raise ValueError(
            f"min_group is {min_group}: it must be at least 2, and at most min_count ({min_count}) if that is not 0"
        )
    if max_count < max(min_count, min_group):
        raise ValueError(
            f"max_count is {max_count}: it must be at least min_group ({min_group}) and min_count ({min_count})"
        )


def _expected_tokens(forecast: Forecast) -> FloatArray:
    """Expected length of each prompt's rollouts, ``[P]``; the mean of the others where unknown, 1 where all are."""
    known_P = ~np.isnan(forecast.tokens_P)
    rest = float(forecast.tokens_P[known_P].mean()) if known_P.any() else 1.0
    return np.maximum(np.where(known_P, forecast.tokens_P, rest), 1.0)


def overdue(prompt_ids: Sequence[str], waited_P: IntArray, max_idle: float, most: int) -> BoolArray:
    """The prompts that were not observed for more than ``max_idle`` steps, the longest waiting first; ``[P]``.

    Longest-waiting first, so a waiting prompt is overtaken only by prompts that waited at least as long, each once;
    waiting time is bounded (docs/beliefs.md has the bound). An id that occurs twice counts once.

    Args:
        prompt_ids: ids, ``[P]``.
        waited_P: steps since each was observed, ``[P]``.
        max_idle: steps that a prompt may wait.
        most: how many prompts to return at most.
    """
    chosen_P = np.zeros(waited_P.size, dtype=bool)
    waiting = np.flatnonzero(waited_P > max_idle)
    longest_first = waiting[np.argsort(-waited_P[waiting], kind="stable")].tolist()
    first: dict[str, int] = {}
    for i in longest_first:
        first.setdefault(prompt_ids[i], i)
    chosen_P[list(first.values())[:most]] = True
    return chosen_P
