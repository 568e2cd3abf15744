"""Registered rules conform, and every check of the suite fails on a strategy with the defect it looks for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from knapsack_arena.published.dapo import DynamicSampling
from knapsack_arena.published.speed import Speed
from knapsack_arena.registry import REGISTRY, RuleContext, make_strategy
from knapsack_arena.strategies import Batch, StepGenerator, StepSpec, Strategy
from knapsack_arena.strategies.groups import equal_request, pick
from knapsack_arena.testing import World, check_strategy, strategies
from knapsack_rl.files import SavedToFile, State
from knapsack_rl.outcomes import Outcomes

CONTEXT = RuleContext(groups=8, prompts=48, max_count=32, truth=World().success_rates)


@pytest.mark.parametrize("name", REGISTRY)
def test_registered_rules_conform(name: str) -> None:
    check_strategy(lambda: make_strategy(name, CONTEXT))


@dataclasses.dataclass
class Plain(SavedToFile):
    """Equal division; most of the defective strategies below change one thing of it."""

    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(spec.groups)
        return Batch((yield equal_request(ids, spec.budget // spec.groups)))


class Untaken(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        return Batch((yield equal_request(["prompt-001"], 8)))


class Liar(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        yield equal_request(spec.take(2), 2)
        return Batch(Outcomes.of_groups(0, [("prompt-000", [1.0, 0.5])]))


class Miser(Plain):
    """Trains on the first step's rollouts in every step."""

    kept: Outcomes | None = None

    def step(self, spec: StepSpec) -> StepGenerator:
        outcomes = yield equal_request(spec.take(2), 2)
        self.kept = outcomes if self.kept is None else self.kept
        return Batch(self.kept)


class Single(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        return Batch((yield equal_request(spec.take(8), 1)))


class Twice(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        outcomes = yield equal_request(spec.take(1), 4)
        rewards = outcomes.rewards_PG.tolist()
        return Batch(Outcomes.of_groups(0, [("prompt-000", rewards[:2]), ("prompt-000", rewards[2:])]))


class Crooked(Plain):
    shape, value = 1, 0.0

    def step(self, spec: StepSpec) -> StepGenerator:
        outcomes = yield equal_request(spec.take(8), 2)
        return Batch(outcomes, baseline_P=np.full(self.shape, self.value))


class NotANumber(Crooked):
    shape, value = 8, float("nan")


class Random(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(spec.groups)
        return Batch((yield equal_request(ids, int(np.random.default_rng().integers(2, 1000)))))


class Amnesiac(Speed):
    def state_dict(self) -> State:
        return Speed().state_dict()


class LiveQueue(Speed):
    """Its state is the queue itself."""

    def state_dict(self) -> State:
        return {"pending": self.pending}


class Endless(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        while True:
            outcomes = yield equal_request(spec.take(spec.groups), 8)
            if outcomes.mixed_P.any():
                return Batch(pick(outcomes, outcomes.mixed_P))


class Reshaper(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        outcomes = yield equal_request(spec.take(spec.groups), 8)
        outcomes.rewards_PG.reshape(-1, 8)
        return Batch(outcomes)


class Divider(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        assert spec.budget // spec.groups > 1
        return super().step(spec)


class Mute(Plain):
    def step(self, spec: StepSpec) -> StepGenerator:
        if spec.budget == spec.groups:
            raise ValueError
        return super().step(spec)


class Bitter(DynamicSampling):
    """Refuses a step and changes all later ones."""

    def step(self, spec: StepSpec) -> StepGenerator:
        if spec.budget == spec.groups:
            object.__setattr__(self, "oversampling", 2)
        return super().step(spec)


class AnyState(Speed):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with contextlib.suppress(ValueError):
            super().load_state_dict(state)


class Emptied(Speed):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.__post_init__()
        super().load_state_dict(state)


class Abrupt(Speed):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            super().load_state_dict(state)
        except ValueError:
            raise RuntimeError("no") from None


@pytest.mark.parametrize(
    ("defective", "check", "message"),
    [
        (Untaken, strategies.trains_on_what_it_requested, "requests prompts that the sampler never returned"),
        (Liar, strategies.trains_on_what_it_requested, "rollouts that were never generated"),
        (Miser, strategies.trains_on_what_it_requested, "step 1: .* twice on one"),
        (Single, strategies.trains_on_what_it_requested, "groups of one"),
        (Twice, strategies.trains_on_what_it_requested, "a prompt in two groups"),
        (Crooked, strategies.trains_on_what_it_requested, "baseline_P has shape"),
        (NotANumber, strategies.trains_on_what_it_requested, "baseline_P is not finite"),
        (Random, strategies.repeats_itself, "two equal strategies differ"),
        (Amnesiac, strategies.resumes, "continues otherwise"),
        (LiveQueue, strategies.resumes, r"state_dict\(\) cannot be written to a file"),
        (Endless, strategies.ends_without_gradient, "no end"),
        (Reshaper, strategies.accepts_lost_rollouts, "failed: ValueError"),
        (Divider, strategies.refuses_groups_of_one, "ends in AssertionError"),
        (Plain, strategies.refuses_groups_of_one, "it trains on groups of one"),
        (Mute, strategies.refuses_groups_of_one, "without a reason"),
        (Bitter, strategies.refuses_groups_of_one, "a step that was refused changed"),
        (AnyState, strategies.refuses_other_states, "takes an empty state without an error"),
        (Emptied, strategies.refuses_other_states, "was refused, but changed the step"),
        (Abrupt, strategies.refuses_other_states, "ends in RuntimeError"),
    ],
)
def test_defective_strategies_are_found(
    defective: Callable[[], Strategy], check: Callable[..., None], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(defective, strategies.CheckedRun(8, 64))
    with pytest.raises(AssertionError):
        check_strategy(defective)
