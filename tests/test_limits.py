"""The authors' special cases as limits, their defects repaired; limits and equal counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from knapsack_rl.knapsack.limits import equal_counts, same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import IntArray
from knapsack_rl.rules.paper import paper_limits, rollouts_for_confidence
from knapsack_rl.values import knapsack_marginals, knapsack_value
from strategies import grid_rates

LOW, HIGH = 2, 128


def paper_plan(rates: list[float], budget: int, seen: list[bool] | None = None, high: int = HIGH) -> IntArray:
    p, known = np.array(rates), np.array(seen if seen is not None else [True] * len(rates))
    low_P, high_P = paper_limits(p, known, budget, LOW, high)
    return solve(knapsack_marginals(p, high), budget, low_P, high_P).counts_P


@given(st.lists(st.tuples(grid_rates, st.booleans()), min_size=1, max_size=12), st.integers(2, 30), st.integers(2, 40))
def test_the_budget_is_spent_within_the_limits_for_every_forecast(
    prompts: list[tuple[float, bool]], mean: int, high: int
) -> None:
    assume(mean <= high)
    rates, seen = zip(*prompts, strict=True)
    counts = paper_plan(list(rates), mean * len(rates), list(seen), high)
    assert counts.sum() == mean * len(rates)
    assert ((counts >= LOW) & (counts <= high)).all()


@given(st.lists(st.tuples(grid_rates, st.booleans()), min_size=1, max_size=12), st.integers(2, 30))
def test_only_mixed_prompts_have_a_choice(prompts: list[tuple[float, bool]], mean: int) -> None:
    rates, seen = (np.array(column) for column in zip(*prompts, strict=True))
    low_P, high_P = paper_limits(rates, seen, mean * rates.size, LOW, HIGH)
    mixed = seen & (rates > 0) & (rates < 1)
    np.testing.assert_array_equal(low_P[~mixed], high_P[~mixed])
    assert (low_P[mixed] == LOW).all()
    assert (high_P[mixed] == HIGH).all()


# Share of prompts at 0 and at 1; rollouts per prompt at 0 in the authors' code, and the tolerance.
REGIMES = {
    "early": (0.6, 0.05, 3.3, 0.5),
    "middle": (0.3, 0.2, 2.0, 0.0),
    "late": (0.2, 0.4, 2.2, 0.5),
    "very late": (0.03, 0.8, 120, 10),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_the_regimes_of_a_training_run(regime: str) -> None:
    """256 x 8 with rates of 16 rewards, as measured on the authors' code (the repairs do not affect these cases)."""
    # A prompt at 1/16 needs 35 rollouts for 90 %, one at a half 3. The mixed ones of those runs needed 15 on average.
    mixed, weights = np.arange(1, 16) / 16, np.array([23] + [10] * 13 + [23])
    needs = np.floor(rollouts_for_confidence(mixed))
    assert (needs * weights).sum() / weights.sum() == pytest.approx(15, abs=0.1)
    unsolved, solved, expected, slack = REGIMES[regime]
    zeros, ones = round(256 * unsolved), round(256 * solved)
    at = np.linspace(0, 1, 256 - zeros - ones)
    between = np.quantile(np.repeat(mixed, weights), at, method="nearest").tolist()
    counts = paper_plan([0.0] * zeros + [1.0] * ones + between, 2048)
    assert counts[:zeros].mean() == pytest.approx(expected, abs=slack)
    assert (counts[zeros : zeros + ones] == LOW).all()
    if regime == "late":
        assert counts[zeros + ones :].mean() == pytest.approx(17, abs=1)
        assert counts.max() == pytest.approx(45, abs=5)


# The authors' defects, one by one (docs/beliefs.md).


def test_defect_1_surplus_does_not_go_to_unseen_prompts() -> None:
    # One mixed prompt needs 3; the unseen one has rate 0 in the array, as it had in the authors' code.
    counts = paper_plan([0.5, 0.0, 0.0], 48, [True, True, False])
    assert counts[2] == 16  # its equal share, no more
    assert counts[1] == 48 - 16 - counts[0]
    assert counts[0] == LOW + 3


def test_defect_2_every_prompt_mixed_and_more_budget_than_they_need() -> None:
    counts = paper_plan([0.5] * 8, 128)  # 16 each where 3 would do: 128 asked, 40 given
    assert counts.tolist() == [16] * 8


def defective_plan(rates: np.ndarray, budget: int, low: int, high: int) -> tuple[int, ...]:
    """The best counts when keeping the minimum is credited 0 instead of Value(low)."""
    values = knapsack_value(rates, high)
    values[:, low] = 0
    options = itertools.product(range(low, high + 1), repeat=rates.size)
    return max(
        (counts for counts in options if sum(counts) == budget),
        key=lambda counts: math.fsum(values[i, n] for i, n in enumerate(counts)),
    )


def test_defect_3_the_minimum_count_has_a_value() -> None:
    """On random instances of 4 prompts and 16 rollouts (2..12 each) the defect costs up to 5 % of the value."""
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(60):
        rates = rng.random(4)
        values = knapsack_value(rates, 12)
        low_P, high_P = same_limits(4, 2, 12)
        best = solve(np.diff(values, axis=1), 16, low_P, high_P).value
        found = math.fsum(values[i, n] for i, n in enumerate(defective_plan(rates, 16, 2, 12)))
        losses.append(1 - found / best)
    assert min(losses) > -1e-12
    assert 0.2 < np.mean(np.array(losses) > 1e-9) < 0.6  # 116 of 300 on the authors' code
    assert 0.005 < max(losses) < 0.1  # 4.8 % at worst


def test_defect_4_limits_hold_when_the_budget_exceeds_them() -> None:
    with pytest.raises(ValueError, match="192 rollouts is above the 48 that the upper limits of 3 prompts allow"):
        paper_plan([0.5] * 3, 192, high=16)  # the authors' code: 64 each


def test_defect_6_minima_above_the_budget_are_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="5 rollouts for 3 prompts leave groups of one: give at least 6"):
        paper_plan([0.5] * 3, 5)
    with pytest.raises(ValueError, match="12 rollouts is below the 20 that the lower limits of 5 prompts ask for"):
        low_P, high_P = paper_limits(np.full(5, 0.5), np.ones(5, dtype=bool), 12, 4, 16)
        solve(knapsack_marginals(np.full(5, 0.5), 16), 12, low_P, high_P)


def test_the_rule_leaves_no_prompt_out() -> None:
    with pytest.raises(ValueError, match="at least 2, not 0"):
        paper_limits(np.full(4, 0.5), np.ones(4, dtype=bool), 16, 0, 16)


def test_surplus_above_the_limits_of_the_unsolved_goes_to_the_mixed() -> None:
    counts = paper_plan([0.0, 0.5, 1.0], 60, high=24)
    assert counts.tolist() == [24, 24, 12]


def test_without_unsolved_prompts_the_surplus_goes_to_all_that_are_not_mixed() -> None:
    counts = paper_plan([0.5, 1.0, 1.0], 45)
    assert counts.tolist() == [5, 20, 20]


def test_a_first_epoch_is_uniform() -> None:
    assert paper_plan([0.0] * 4, 32, [False] * 4).tolist() == [8] * 4
    assert paper_plan([0.0] * 4, 34, [False] * 4).tolist() == [9, 9, 8, 8]


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.5, 3.32), (0.1, 21.85), (0.9, 21.85), (0.01, 229.1), (0.0, math.inf), (1.0, math.inf)]
)
def test_rollouts_for_confidence(rate: float, expected: float) -> None:
    assert rollouts_for_confidence(np.array([rate]))[0] == pytest.approx(expected, rel=1e-3)


def test_rollouts_for_confidence_of_rates_below_rounding() -> None:
    assert rollouts_for_confidence(np.array([1e-20]))[0] == pytest.approx(math.log(10) * 1e20)
    counts = paper_plan([1e-20, 0.5], 40)  # capped at the upper limit, without integer overflow
    assert counts.sum() == 40


@given(st.integers(1, 40), st.integers(0, 2000))
def test_equal_counts(prompts: int, budget: int) -> None:
    if prompts <= budget < 2 * prompts or 0 < budget < prompts:
        with pytest.raises(ValueError, match="leave groups of one"):
            equal_counts(prompts, budget)
        return
    counts = equal_counts(prompts, budget)
    assert counts.sum() == budget
    assert counts.max() - counts.min() <= 1
    assert (np.diff(counts) <= 0).all()


def test_equal_counts_of_no_prompts() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        equal_counts(0, 8)
