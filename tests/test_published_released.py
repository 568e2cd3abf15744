"""Knapsack RL as released, against the steps of the authors' function written out, and within the loop."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_arena.published.released import released_rule
from knapsack_rl import Outcomes
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.notation import BoolArray, FloatArray, IntArray

CRASHES = "their code crashes"


def value(n: int, p: float) -> float:
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def best_total(rates: list[float], extra: int, low: int, high: int) -> float:
    """Their programme: no extra rollout is worth 0, k extra ones all of Value(low + k)."""
    best = np.full(extra + 1, -np.inf)
    best[0] = 0.0
    for p in rates:
        after = best.copy()
        for k in range(1, min(high - low, extra) + 1):
            after[k:] = np.maximum(after[k:], best[: extra + 1 - k] + value(low + k, p))
        best = after
    return float(best[extra])


def evenly(counts: list[int], places: list[int], amount: int) -> None:
    for k, i in enumerate(places):
        counts[i] += amount // len(places) + (k < amount % len(places))


def their_steps(rates: FloatArray, seen: BoolArray, budget: int, low: int, high: int) -> tuple[list[int], int] | str:
    """Counts before the programme, and what it has to spend; in their order, with their defects."""
    rates = np.where(seen, rates, 0.0)  # defect 1
    mixed = [i for i in range(rates.size) if seen[i] and 0 < rates[i] < 1]
    counts = [low if each else budget // rates.size for each in seen]
    left = budget - sum(counts)
    unsolved = [i for i in range(rates.size) if rates[i] == 0]
    if left < 0:
        return CRASHES  # defect 6
    if not mixed:
        if left and not unsolved:
            return [budget // rates.size] * rates.size, 0
        evenly(counts, unsolved, left)
        return counts, 0
    need = sum(int(min(high, log(0.1) / log(max(p, 1 - p)))) for p in rates[mixed])
    if need < left:
        receivers = unsolved or [i for i in range(rates.size) if i not in mixed]
        if not receivers:
            return CRASHES  # defect 2
        evenly(counts, receivers, left - need)
        left = need
    return counts, left


def planned(rates: FloatArray, seen: BoolArray, budget: int, low: int = 2, high: int = 128) -> IntArray:
    forecast = Forecast(rates, np.full(rates.size, 16.0), seen, np.full(rates.size, np.nan))
    problem = released_rule(forecast, budget, low, high)
    assert problem.low_P.tolist() == problem.high_P.tolist()
    return problem.low_P


known_rates = st.integers(0, 16).map(lambda k: k / 16)
beliefs = st.one_of(  # a rate, and whether it was seen
    st.lists(st.tuples(known_rates, st.booleans()), min_size=2, max_size=8),
    st.lists(st.tuples(known_rates, st.just(True)), min_size=2, max_size=8),
    st.lists(st.just((0.5, True)), min_size=2, max_size=8),
)


@given(beliefs, st.integers(2, 8), st.integers(4, 19))
@settings(max_examples=300, deadline=None)
def test_it_does_what_their_function_does(believed: list[tuple[float, bool]], mean: int, high: int) -> None:
    size, low = len(believed), 2
    rates, seen = (np.array(each) for each in zip(*believed, strict=True))
    found, expected = planned(rates, seen, size * mean, low, high), their_steps(rates, seen, size * mean, low, high)
    if expected == CRASHES:
        assert found.tolist() == [mean] * size
        return
    counts, extra = expected
    mixed = seen & (rates > 0) & (rates < 1)
    assert found[~mixed].tolist() == np.array(counts)[~mixed].tolist()
    assert found.sum() == size * mean
    room = int(mixed.sum()) * (high - low)
    if extra >= room > 0:  # defect 4: the rest is spread evenly, beyond the limit
        evenly(counts, np.flatnonzero(mixed).tolist(), extra - room)
        assert found[mixed].tolist() == (np.array(counts)[mixed] + high - low).tolist()
    elif room:
        total = sum(value(n, p) for n, p in zip(found[mixed].tolist(), rates[mixed].tolist(), strict=True) if n > low)
        assert total == pytest.approx(best_total(rates[mixed].tolist(), extra, low, high), abs=1e-12)


def test_their_steps_by_hand() -> None:
    assert their_steps(np.array([0.5, 0.5]), np.array([True, True]), 128, 2, 128) == CRASHES
    assert their_steps(np.array([1.0, 1.0]), np.array([True, True]), 16, 2, 128) == ([8, 8], 0)
    assert their_steps(np.array([0.0, 1.0]), np.array([True, True]), 16, 2, 128) == ([14, 2], 0)
    # .75: ln .1 / ln .75 = 8.004; of 24 - 6 = 18 rollouts, 10 are not needed and 5 go to either unsolved prompt
    assert their_steps(np.array([0.75, 0.0, 0.0]), np.array([True] * 3), 24, 2, 128) == ([2, 7, 7], 8)


def test_unsolved_prompts_get_the_least_early_and_past_the_most_late() -> None:
    all_seen = np.ones(100, dtype=np.bool_)
    # Early: 40 prompts at 1/16 need ln .1 / ln(15/16) = 35 each, 1,400 in all, more than the 600 that are left.
    early = np.array([0.0] * 60 + [1 / 16] * 40)
    assert planned(early, all_seen, 800).tolist() == [2] * 60 + [17] * 40
    # Late: 17 prompts at 1/2 need 3 each; 600 - 51 = 549 go to three unsolved ones, whatever the limit is.
    late = np.array([0.0] * 3 + [1.0] * 80 + [0.5] * 17)
    assert planned(late, all_seen, 800, high=128).tolist() == [185] * 3 + [2] * 80 + [5] * 17


def test_it_forgets_nothing_across_a_resume(tmp_path: Path) -> None:
    ids = ["never", "half", "always", "new"]
    groups = [("never", [0.0] * 8), ("half", [1.0, 0.0] * 4), ("always", [1.0] * 8), ("new", [1.0] * 4)]
    kept, resumed = (KnapsackAllocator(WindowBeliefs(), released_rule) for _ in range(2))
    kept.observe(Outcomes.of_groups(0, groups))
    kept.save(tmp_path / "saved")
    resumed.load(tmp_path / "saved")
    for each in (kept, resumed):
        # 32 - (2 + 2 + 2 + 8) = 18 to spend; "half" needs 3; 15 go to "never" and, by defect 1, to "new" with 4 rewards
        assert each.plan(ids, 32, 1).counts_P.tolist() == [10, 5, 2, 15]


def test_limits_that_leave_nothing_to_choose_are_equal_counts() -> None:
    all_seen = np.ones(3, dtype=np.bool_)
    assert planned(np.array([0.5, 0.0, 1.0]), all_seen, 6).tolist() == [2, 2, 2]
    assert planned(np.array([0.5, 0.0, 1.0]), all_seen, 9, low=4).tolist() == [3, 3, 3]  # their assertion fails
