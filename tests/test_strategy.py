"""One step of a strategy: requests, outcomes, and the rollouts, tokens and rounds that are counted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice

import numpy as np
import pytest

from knapsack_arena.strategies import Batch, OneRound, RolloutRequest, StepGenerator, StepSpec, run_step
from knapsack_rl import AllocationConfig, KnapsackAllocator, Outcomes, Plan, PromptFeatures
from knapsack_rl.files import SavedToFile


def spec(groups: int = 4, budget: int = 32, step: int = 0) -> StepSpec:
    numbers = count()
    return StepSpec(step, groups, budget, lambda k: tuple(f"p{i}" for i in islice(numbers, k)))


def beta(min_count: int = 2) -> KnapsackAllocator:
    return AllocationConfig(rule="beta", pool=1, min_count=min_count).make_allocator()


def generate(request: RolloutRequest) -> Outcomes:
    """Every other rollout succeeds; each is 10 tokens long."""
    rows = int(request.counts_P.sum())
    return Outcomes(0, request.prompt_ids, request.counts_P, np.arange(rows) % 2.0, np.full(rows, 10))


class PilotThenRest(SavedToFile):
    """Two of each, then the rest of the budget to the first prompt."""

    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(spec.groups)
        first = yield RolloutRequest(ids, np.full(len(ids), 2))
        rest = yield RolloutRequest(ids[:1], np.array([spec.budget - int(first.counts_P.sum())]))
        return Batch(rest)


def test_an_allocator_runs_one_round_of_its_plan() -> None:
    allocator = beta()
    result = run_step(OneRound(allocator), spec(), generate)
    (request, outcomes), *more = result.rounds
    assert not more
    assert result.batch.outcomes is outcomes
    assert request.counts_P.tolist() == allocator_counts()
    assert (result.rollouts, result.tokens) == (32, 320)
    assert allocator.plan(("p0",), 2, 1).seen_P.all()  # it learned


def allocator_counts() -> list[int]:
    return beta().plan(("p0", "p1", "p2", "p3"), 32, 0).counts_P.tolist()


def test_a_pool_offers_more_prompts_than_groups() -> None:
    result = run_step(OneRound(beta(min_count=0), pool=8), spec(), generate)
    (request, _), *_ = result.rounds
    assert 4 < len(request.prompt_ids) < 32  # a group has at least two, so some candidates are left out
    assert request.counts_P.min() >= 2
    assert request.counts_P.sum() == 32


def test_rounds_within_a_step_are_counted() -> None:
    result = run_step(PilotThenRest(), spec(), generate)
    assert [int(request.counts_P.sum()) for request, _ in result.rounds] == [8, 24]
    assert (result.rollouts, result.tokens, len(result.rounds)) == (32, 320, 2)  # of all, not of what is trained on
    assert result.batch.outcomes.prompt_ids == ("p0",)


def test_outcomes_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="other prompts"):
        run_step(OneRound(beta()), spec(), lambda _: Outcomes.of_groups(0, [("x", [1.0, 0.0])]))


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        (("a", "b"), [1], "shape"),
        (("a", "b"), [2, -1], "no fewer than 0"),
        (("a", "b"), [0, 0], "some rollouts"),
        (("a", "a"), [2, 2], "twice"),
    ],
)
def test_an_impossible_request_is_refused(ids: tuple[str, ...], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutRequest(ids, np.array(counts))


def test_a_pool_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="pool is 0"):
        OneRound(beta(), pool=0)


class Recording(KnapsackAllocator):
    """Keeps the outcomes that it learned from."""

    def observe(self, outcomes: Outcomes) -> None:
        self.observed = outcomes
        super().observe(outcomes)


def test_features_of_the_planned_prompts_come_back_with_the_outcomes() -> None:
    def features(prompt_ids: Sequence[str]) -> PromptFeatures:
        numbers = np.array([[float(prompt_id[1:])] for prompt_id in prompt_ids])
        return PromptFeatures(numbers, -numbers)

    allocator = Recording(min_count=0)
    result = run_step(OneRound(allocator, pool=8, features=features), spec(), generate)
    found = allocator.observed.features
    assert found is not None
    assert found.features_P_F[:, 0].tolist() == [float(each[1:]) for each in allocator.observed.prompt_ids]
    assert (found.confidence_P_C == -found.features_P_F).all()
    assert result.batch.outcomes.prompt_ids == allocator.observed.prompt_ids


def test_an_allocator_without_features_need_not_take_them() -> None:
    class Plain(Recording):
        def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:  # type: ignore[override]
            return super().plan(prompt_ids, budget, step)

    allocator = Plain()
    run_step(OneRound(allocator), spec(), generate)
    assert allocator.observed.features is None
