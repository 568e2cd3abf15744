"""Registered allocators conform, and every check of the suite fails on an allocator with the defect it looks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from knapsack_arena.registry import REGISTRY, RuleContext, make_strategy
from knapsack_arena.strategies import OneRound
from knapsack_arena.testing import World
from knapsack_rl.allocator import Allocator, KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.files import State, check_kind
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rules import AllocationProblem, expected_value, oracle_rule
from knapsack_rl.testing import allocators, check_allocator, check_rule
from knapsack_rl.testing.allocators import Limits

CONTEXT = RuleContext(groups=8, prompts=48, max_count=32, truth=World().success_rates)


@pytest.mark.parametrize("name", [each for each in REGISTRY if isinstance(make_strategy(each, CONTEXT), OneRound)])
def test_allocators_of_registered_rules_conform(name: str) -> None:
    def make() -> Allocator:
        strategy = make_strategy(name, CONTEXT)
        assert isinstance(strategy, OneRound)
        return strategy.allocator

    limits = getattr(make(), "min_count", CONTEXT.min_count), CONTEXT.max_count
    if name == "paper-released":  # it spreads what has no room beyond the largest count allowed: its defect 4
        with pytest.raises(AssertionError, match="leaves the limits"):
            check_allocator(make, *limits)
        return
    check_allocator(make, *limits)


@pytest.mark.parametrize("low", [0, 2, 3])
@pytest.mark.parametrize("rule", [expected_value, oracle_rule])
def test_rules_conform_for_every_least_count(rule: Any, low: int) -> None:
    check_rule(rule, low, 24)


class Thrifty(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        return super().plan(prompt_ids, budget - 2 if budget > 2 * len(prompt_ids) + 1 else budget, step)


class Loner(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Any:
        plan = super().plan(prompt_ids, budget, step)
        counts = np.full(len(prompt_ids), 1)
        counts[0] += budget - len(prompt_ids)
        return SimpleNamespace(**{**plan.__dict__, "counts_P": counts})


class Sorter(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        return super().plan(sorted(prompt_ids), budget, step)


class Curious(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        self.beliefs.observe(Outcomes.of_groups(step, [(prompt_ids[0], [0.0])] if prompt_ids else []))
        return super().plan(prompt_ids, budget, step)


class Gambler(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        self.rule = lambda *given: AllocationProblem(
            np.sort(np.random.default_rng().random((len(prompt_ids), 33)))[:, ::-1],
            *same_limits(len(prompt_ids), 2, 32),
        )
        return super().plan(prompt_ids, budget, step)


class Snob(KnapsackAllocator):
    """Prefers the first prompts."""

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        worth = np.linspace(2, 1, len(prompt_ids))[:, None] * np.ones(32)
        self.rule = lambda *given: AllocationProblem(worth, *same_limits(len(prompt_ids), 2, 32))
        return super().plan(prompt_ids, budget, step)


class Forgetful(KnapsackAllocator):
    def state_dict(self) -> State:
        return BetaBeliefs().state_dict()


class Live(KnapsackAllocator):
    """Its state changes while it learns."""

    def state_dict(self) -> State:
        return self.beliefs.state_dict(copy=False)  # type: ignore[call-arg]


class Unwritable(KnapsackAllocator):
    def state_dict(self) -> State:
        return {**super().state_dict(), "beliefs": self.beliefs}


class Brittle(KnapsackAllocator):
    def observe(self, outcomes: Outcomes) -> None:
        if np.isnan(outcomes.rewards_PG).any():
            raise RuntimeError("NaN")
        super().observe(outcomes)


class Poisoned(KnapsackAllocator):
    def observe(self, outcomes: Outcomes) -> None:
        super().observe(outcomes)
        if np.isnan(outcomes.rewards_PG).any():
            self.beliefs.table["failures"][:] = np.nan  # type: ignore[attr-defined]


class Rough(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        prompt_ids[0]
        return super().plan(prompt_ids, budget, step)


class Silent(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        if not prompt_ids:
            raise ValueError
        return super().plan(prompt_ids, budget, step)


class Generous(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        return super().plan(prompt_ids, min(max(budget, 2 * len(prompt_ids)), 32 * len(prompt_ids)), step)


class Sulking(KnapsackAllocator):
    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        try:
            return super().plan(prompt_ids, budget, step)
        except ValueError:
            self.beliefs = BetaBeliefs()
            raise


class Trusting(KnapsackAllocator):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with contextlib.suppress(ValueError):
            super().load_state_dict(state)


class Unchecked(KnapsackAllocator):
    """Checks the kind of a state, and ignores damage."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_kind(state, kind="beta")
        with contextlib.suppress(ValueError):
            super().load_state_dict(state)


class Hasty(KnapsackAllocator):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.beliefs = BetaBeliefs()
        super().load_state_dict(state)


class Rude(KnapsackAllocator):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            super().load_state_dict(state)
        except ValueError:
            raise KeyError("header") from None


LIMITS = Limits(2, 32)


@pytest.mark.parametrize(
    ("defective", "check", "message"),
    [
        (Thrifty, lambda make: allocators.spends_the_budget(make, LIMITS), "the counts sum to .*, the plan says"),
        (Loner, lambda make: allocators.spends_the_budget(make, LIMITS), "has a group of one"),
        (Sorter, lambda make: allocators.spends_the_budget(make, LIMITS), "the prompts that were given, in order"),
        (
            lambda **limits: KnapsackAllocator(max_count=200),
            lambda make: allocators.spends_the_budget(make, Limits(2, 9)),
            "leaves the limits 2..9",
        ),
        (
            lambda **limits: KnapsackAllocator(min_count=3),
            lambda make: allocators.spends_the_budget(make, LIMITS),
            "there is a plan within 2..32, but",
        ),
        (Curious, allocators.planning_changes_nothing, r"plan\(\) changed"),
        (Gambler, allocators.repeats_itself, "equal histories gave different plans"),
        (Snob, allocators.ignores_the_order, "the same prompts in another order"),
        (Forgetful, allocators.resumes, r"after load_state_dict\(\) it plans otherwise"),
        (Live, allocators.resumes, r"after load_state_dict\(\) it plans otherwise"),
        (Unwritable, allocators.resumes, r"state_dict\(\) cannot be written to a file: state holds a BetaBeliefs"),
        (
            Brittle,
            lambda make: allocators.accepts_unusual_outcomes(make, LIMITS),
            r"failed on a group without an answer",
        ),
        (Poisoned, lambda make: allocators.accepts_unusual_outcomes(make, LIMITS), "after a group without an answer"),
        (Rough, lambda make: allocators.refuses_impossible_plans(make, LIMITS), "no prompts ends in IndexError"),
        (Silent, lambda make: allocators.refuses_impossible_plans(make, LIMITS), "without a reason"),
        (Generous, lambda make: allocators.refuses_impossible_plans(make, LIMITS), "negative budget .* is planned"),
        (Sulking, lambda make: allocators.refuses_impossible_plans(make, LIMITS), "asking for no prompts changed"),
        (Trusting, allocators.refuses_other_states, "takes an empty state without an error"),
        (Unchecked, allocators.refuses_other_states, "takes a state with damaged prompts.keys without an error"),
        (Hasty, allocators.refuses_other_states, "was refused, but changed what is planned"),
        (Rude, allocators.refuses_other_states, "ends in KeyError"),
    ],
)
def test_defective_allocators_are_found(
    defective: Callable[..., Allocator], check: Callable[[Any], None], message: str
) -> None:
    def make() -> Allocator:
        return defective(min_count=2, max_count=32)

    with pytest.raises(AssertionError, match=message):
        check(make)
    with pytest.raises(AssertionError):
        check_allocator(make, 2, 9 if "9" in message else 32)


def test_a_rule_that_writes_into_the_forecast_is_found() -> None:
    def scribbler(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        forecast.success_rates_P[:] = 0.5
        return expected_value(forecast, budget, low, high)

    with pytest.raises(AssertionError, match="wrote into the forecast's success_rates_P"):
        check_rule(scribbler)
