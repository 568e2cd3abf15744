"""CERO: rollouts so far count, prices are equal at the optimum, and what a prompt has had survives a resume."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.cero import cero_rule
from knapsack_rl import BetaBeliefs, KnapsackAllocator, Outcomes, solve
from knapsack_rl.beliefs.forecast import Forecast


def forecast(rates: list[float], had: list[float], seen: list[bool] | None = None) -> Forecast:
    known = np.array([True] * len(rates) if seen is None else seen)
    return Forecast(np.array(rates), np.array(had), known, np.full(known.size, np.nan))


def counts(believed: Forecast, budget: int, low: int = 2, high: int = 128) -> list[int]:
    problem = cero_rule(believed, budget, low, high)
    found: list[int] = solve(problem.marginals, budget, problem.low_P, problem.high_P).counts_P.tolist()
    return found


def even_weight(had: float) -> float:
    """The p for which p (1 - p) * had / (had + 1) is 1/5, as at p = 1/2 with had = 4."""
    return float((1 - np.sqrt(1 - 0.8 * (had + 1) / had)) / 2)


def test_equal_weights_even_out_the_rollouts_since_the_beginning() -> None:
    # 4 + 16 = 10 + 10 = 16 + 4
    had = [4.0, 10.0, 16.0]
    assert counts(forecast([0.5, even_weight(10), even_weight(16)], had), 30) == [16, 10, 4]


def test_weights_are_in_proportion_to_the_rollouts_since_the_beginning() -> None:
    # w / (N + n + 1/2) is nearly the worth of a rollout; with 9 each, w as 25 : 9 (p = 1/2 and 1/10) and 50 to give,
    # 9.5 + n divides 69 as 25 : 9, into 50.7 and 18.3
    assert counts(forecast([0.5, 0.1], [9.0, 9.0]), 50) == [41, 9]


def test_no_other_division_is_worth_more() -> None:
    rates, had = [0.5, 0.2, 0.7], [3.0, 0.5, 12.0]
    weights = [p * (1 - p) * h / (h + 1) for p, h in zip(rates, had, strict=True)]

    def worth(division: tuple[int, ...]) -> float:
        return sum(w * np.log(1 + h + n) for w, h, n in zip(weights, had, division, strict=True))

    found = tuple(counts(forecast(rates, had), 21, 2, 12))
    best = max(worth(each) for each in product(range(2, 13), repeat=3) if sum(each) == 21)
    assert worth(found) == pytest.approx(best, abs=1e-12)


def test_an_unseen_prompt_has_had_nothing() -> None:
    # Jeffreys' prior has strength 1, which is belief and no rollout: both weigh 1/8, and 1 + 12 = 0 + 13
    assert counts(forecast([0.5, 0.5], [1.0, 1.0], [True, False]), 25) == [12, 13]


@pytest.mark.parametrize(("rates", "expected"), [([0.0, 0.5, 1.0], [2, 16, 2]), ([0.5, 0.5, 0.5], [7, 7, 6])])
def test_prompts_without_variance_get_the_least(rates: list[float], expected: list[int]) -> None:
    assert counts(forecast(rates, [8.0] * 3), 20) == expected


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_prompts_without_variance_share_the_remainder_evenly(rate: float) -> None:
    assert counts(forecast([rate] * 4, [8.0] * 4), 32) == [8] * 4
    assert counts(forecast([rate, 0.5, rate], [8.0] * 3), 40, high=20) == [10, 20, 10]


def test_budgets_at_the_limits_leave_no_choice() -> None:
    believed = forecast([0.0, 0.3, 0.9], [1.0, 8.0, 2.0])
    assert counts(believed, 6, 2, 9) == [2, 2, 2]
    assert counts(believed, 27, 2, 9) == [9, 9, 9]
    assert counts(forecast([0.3], [8.0]), 11) == [11]


def test_past_rollouts_decay_with_the_belief_and_survive_a_resume(tmp_path: Path) -> None:
    def make() -> KnapsackAllocator:
        return KnapsackAllocator(BetaBeliefs(half_life=10), cero_rule, 2, 64)

    allocator, resumed, new = make(), make(), make()
    allocator.observe(Outcomes.of_groups(0, [("often", [1.0, 0.0] * 20), ("rarely", [1.0, 0.0] * 2)]))
    ids = ["often", "rarely"]
    now, later = (allocator.plan(ids, 40, step).counts_P for step in (0, 30))
    assert now[1] > now[0] and later[1] - later[0] < now[1] - now[0]
    allocator.save(tmp_path / "cero")
    resumed.load(tmp_path / "cero")
    assert resumed.plan(ids, 40, 5).counts_P.tolist() == allocator.plan(ids, 40, 5).counts_P.tolist()
    assert new.plan(ids, 40, 5).counts_P.tolist() == [20, 20]
