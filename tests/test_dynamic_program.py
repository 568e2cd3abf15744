from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knapsack_rl.knapsack.dynamic_program import solve_by_dynamic_programme
from knapsack_rl.knapsack.solver import solve, solve_table
from strategies import Case, cases, wild_cases


@settings(max_examples=100)
@given(cases(most_prompts=8, most=12))
def test_the_dynamic_programme_agrees_with_the_solver(case: Case) -> None:
    arguments = (case.values_P_N, case.budget, case.low_P, case.high_P)
    try:
        general = solve_by_dynamic_programme(*arguments)
    except ValueError:
        with pytest.raises(ValueError, match="sum to a budget"):
            solve_table(*arguments)
        return
    assert general.value == pytest.approx(solve_table(*arguments).value, rel=1e-9, abs=1e-12)
    worth = case.values_P_N[np.arange(case.low_P.size), general.counts_P].sum()
    assert general.value == pytest.approx(worth, rel=1e-9, abs=1e-12)


@settings(max_examples=100)
@given(wild_cases(), st.data())
def test_integer_costs_are_solved_exactly(case: Case, data: st.DataObject) -> None:
    costs = np.array(data.draw(st.lists(st.integers(1, 3), min_size=case.low_P.size, max_size=case.low_P.size)))
    budget = int((case.low_P * costs).sum()) + data.draw(st.integers(0, 12))
    solution = solve_by_dynamic_programme(case.values_P_N, budget, case.low_P, case.high_P, costs.astype(float))
    choices = [[n for n in range(low, high + 1) if n != 1] for low, high in zip(case.low_P, case.high_P, strict=True)]
    best = max(
        sum(case.values_P_N[i, n] for i, n in enumerate(counts))
        for counts in itertools.product(*choices)
        if np.dot(counts, costs) <= budget
    )
    assert solution.value == pytest.approx(best, abs=1e-9)
    assert np.dot(solution.counts_P, costs) <= budget
    assert solution.gap == 0


@given(wild_cases())
def test_the_price_is_the_least_value_of_a_last_rollout(case: Case) -> None:
    try:
        solution = solve_by_dynamic_programme(case.values_P_N, case.budget, case.low_P, case.high_P)
    except ValueError:
        assume(False)
    gains = []
    for row, count, low in zip(case.values_P_N, solution.counts_P, case.low_P, strict=True):
        if count > low:
            gains.append((row[2] - row[0]) / 2 if count == 2 else row[count] - row[count - 1])
    assert solution.price == pytest.approx(min(gains, default=0.0))


def test_costs_that_are_not_integers_are_refused() -> None:
    not_concave = np.array([[0, 0, 1, 5, 6]], dtype=float)
    with pytest.raises(ValueError, match="need integer costs"):
        solve_table(not_concave, 4, np.array([0]), np.array([4]), np.array([1.5]))


def test_a_table_above_the_cell_limit_is_refused() -> None:
    not_concave = np.tile(np.array([0.0, 0, 0, 5, 5]), (30_000, 1))
    with pytest.raises(ValueError, match="30000 prompts x 90000 units"):
        solve_table(not_concave, 90_000, np.zeros(30_000), np.full(30_000, 4))


def test_a_budget_that_no_counts_meet_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to a budget of 3"):
        solve_by_dynamic_programme(np.zeros((2, 3)), 3, np.zeros(2), np.full(2, 2))
    assert math.isclose(solve_by_dynamic_programme(np.zeros((0, 1)), 0, np.zeros(0), np.zeros(0)).value, 0)


@pytest.mark.parametrize("cost", [2.0**53, 2.0**63, 1e30, 1e300])
def test_a_cost_beyond_all_budgets_buys_nothing(cost: float) -> None:
    values = np.array([[0.0, 0.0, 1.0, 1.5], [0.0, 0.0, 9.0, 9.5]])
    low_P, high_P = np.zeros(2, dtype=np.int64), np.array([3, 3])
    plan = solve_by_dynamic_programme(values, 10, low_P, high_P, cost_P=np.array([1.0, cost]))
    assert plan.counts_P.tolist() == [3, 0]
    concave = np.diff(np.array([[0.0, 0.0, 1.0, 1.5], [0.0, 0.0, 9.0, 9.5]]), axis=1)
    assert solve(concave, 10, low_P, high_P, np.array([1.0, cost])).counts_P.tolist() == [3, 0]
