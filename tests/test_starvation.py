"""No prompt is left out for ever, whatever is believed of it: the bound of docs/beliefs.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.allocator import OVERDUE_SHARE, KnapsackAllocator, make_allocator
from knapsack_rl.beliefs import Beliefs, Forecast, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.calibrated import CalibratedBeliefs
from knapsack_rl.limits import overdue
from knapsack_rl.oracle import GivenBeliefs
from knapsack_rl.outcomes import Outcomes


class Stubborn(PosteriorBeliefs):
    """Certain that some prompts are hopeless and that all others are worth everything, whatever happens."""

    def __init__(self, hopeless: set[str]) -> None:
        super().__init__()
        self.hopeless = hopeless

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        rates_P = np.array([1e-9 if prompt_id in self.hopeless else 0.5 for prompt_id in prompt_ids])
        return replace(
            super().forecast(prompt_ids, step), success_rates_P=rates_P, strength_P=np.full(rates_P.size, 1e9)
        )


def failures(step: int, allocator: KnapsackAllocator, offered: Sequence[str], budget: int) -> set[str]:
    """Plan a step, in which nothing succeeds; who was generated for."""
    plan = allocator.plan(offered, budget, step)
    served = {prompt_id: int(n) for prompt_id, n in zip(plan.prompt_ids, plan.counts_P, strict=True) if n}
    allocator.observe(Outcomes.of_groups(step, [(prompt_id, [0.0] * n) for prompt_id, n in served.items()]))
    return set(served)


@given(st.data(), st.integers(2, 12), st.integers(1, 5), st.integers(2, 40), st.floats(0.5, 9), st.floats(0.01, 1.0))
@settings(max_examples=80, deadline=None)
def test_longest_wait(
    data: st.DataObject, prompts: int, every: int, budget: int, max_idle: float, share: float
) -> None:
    """Offered at least once in every E steps: generated for after at most max_idle + E * ceil(M / c) steps."""
    ids = [f"p{i}" for i in range(prompts)]
    hopeless = data.draw(st.sets(st.sampled_from(ids)))
    allocator = KnapsackAllocator(Stubborn(hopeless), None, 0, max(budget, 2), max_idle, share)
    pairs = max(int(budget * share) // 2, 1)
    bound = max_idle + every * math.ceil(prompts / pairs)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    offered_at, served_at = dict.fromkeys(ids, -1), dict.fromkeys(ids, 0)
    for step in range(int(3 * bound) + 2):
        offered = [p for p in ids if step - offered_at[p] == every or random.random() < 0.3]
        offered_at |= dict.fromkeys(offered, step)
        if offered:
            random.shuffle(offered)
            served_at |= dict.fromkeys(failures(step, allocator, offered, budget), step)
        assert all(step - served_at[p] <= bound for p in ids), f"{served_at} at step {step}"


def test_without_the_promise_a_hopeless_prompt_starves() -> None:
    ids = ["bad", "good", "better"]
    for max_idle, expected in ((None, []), (10, [11, 22])):
        allocator = KnapsackAllocator(Stubborn({"bad"}), None, 0, 64, max_idle)
        assert [step for step in range(25) if "bad" in failures(step, allocator, ids, 16)] == expected


def test_overdue_prompts_take_no_more_than_their_share() -> None:
    ids = [f"p{i}" for i in range(40)]
    allocator = KnapsackAllocator(Stubborn(set(ids) - {"p0"}), None, 0, 128, max_idle=5)
    plan = allocator.plan(ids, 64, 100)
    assert np.count_nonzero(plan.low_P) == 4  # an eighth of 64 rollouts is 4 pairs
    assert plan.counts_P[1:4].tolist() == [2, 2, 2]
    assert plan.counts_P[0] > 50  # the one that is worth something
    assert OVERDUE_SHARE == 1 / 8


def test_who_is_overdue() -> None:
    ids = ("a", "b", "c", "a", "d")
    idle = np.array([7, 9, 3, 7, 8])
    assert overdue(ids, idle, 3, 9).tolist() == [True, True, False, False, True]  # c waited 3, which is not beyond 3
    assert overdue(ids, idle, 3, 2).tolist() == [False, True, False, False, True]
    assert not overdue(ids, idle, 9, 9).any()


@pytest.mark.parametrize("budget", [0, 2, 3, 5, 16])
def test_small_budgets_are_met(budget: int) -> None:
    plan = KnapsackAllocator(Stubborn({"a", "b"}), None, 0, 64, max_idle=1).plan(["a", "b", "c"], budget, 50)
    assert plan.counts_P.sum() == budget
    assert plan.counts_P[0] == min(budget, 2 + (budget == 3))  # a single rollout would be no group


@pytest.mark.parametrize("make", [PosteriorBeliefs, CalibratedBeliefs, PaperBeliefs])
def test_every_belief_counts_idle_steps(make: type[PosteriorBeliefs | PaperBeliefs], tmp_path: Path) -> None:
    beliefs: Beliefs = make()
    beliefs.observe(Outcomes.of_groups(3, [("a", [1.0, 0.0]), ("silent", [math.nan, math.nan])]))
    beliefs.observe(Outcomes.of_groups(2, [("a", [1.0, 0.0])]))  # late
    assert idle(beliefs, 8) == [5, 8, 8]
    beliefs.save(tmp_path / "beliefs.npz")
    loaded = make()
    loaded.load(tmp_path / "beliefs.npz")
    assert idle(loaded, 8) == [5, 8, 8]


def idle(beliefs: Beliefs, step: int) -> list[int]:
    idle_P = beliefs.forecast(["a", "silent", "new"], step).idle_P
    assert idle_P is not None
    return idle_P.tolist()


def test_what_is_known_needs_no_looking_after() -> None:
    assert idle(GivenBeliefs(lambda ids: np.full(len(ids), 0.5)), 99) == [0, 0, 0]


@pytest.mark.parametrize("method", ["calibrated", "posterior"])
def test_the_promise_is_made_where_prompts_may_be_left_out(method: str) -> None:
    assert make_allocator(method, min_count=0, half_life=30.0).max_idle == 60  # type: ignore[arg-type]
    assert make_allocator(method, min_count=2, half_life=30.0).max_idle is None  # type: ignore[arg-type]


@pytest.mark.parametrize("promise", [{"max_idle": 0}, {"overdue_share": 0}, {"overdue_share": 1.5}], ids=str)
def test_promises_that_make_no_sense(promise: dict[str, float]) -> None:
    ((name, value),) = promise.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        KnapsackAllocator(None, None, 0, **promise)  # type: ignore[arg-type]
