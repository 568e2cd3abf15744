from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knapsack_rl.knapsack.dynamic_program import solve_by_dynamic_programme
from knapsack_rl.knapsack.limits import Solution
from knapsack_rl.knapsack.solver import solve, solve_table
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals, knapsack_value
from strategies import Case, cases, wild_cases

COSTS = st.one_of(st.integers(1, 4).map(float), st.floats(0.3, 5))


def by_brute_force(case: Case, costs: list[float] | None = None, budget: float | None = None) -> float:
    """The greatest value over all allowed counts; -inf if there are none."""
    best = -math.inf
    for counts in itertools.product(*(allowed(*pair) for pair in zip(case.low_P, case.high_P, strict=True))):
        if costs is None:
            fits = sum(counts) == case.budget
        else:
            assert budget is not None
            fits = sum(n * c for n, c in zip(counts, costs, strict=True)) <= budget * (1 + 1e-12)
        if fits:
            best = max(best, math.fsum(case.values_P_N[i, n] for i, n in enumerate(counts)))
    return best


def allowed(low: int, high: int) -> list[int]:
    return [n for n in range(int(low), int(high) + 1) if n != 1]


def by_forward_programme(values_P_N: FloatArray, budget: int, low_P: IntArray, high_P: IntArray) -> float:
    """The greatest value by a forward recurrence over reachable sums, independent of the solver's."""
    reached = {0: 0.0}
    for row, low, high in zip(values_P_N.tolist(), low_P, high_P, strict=True):
        following: dict[int, float] = {}
        for spent, worth in reached.items():
            for n in allowed(low, high):
                if spent + n <= budget:
                    following[spent + n] = max(following.get(spent + n, -math.inf), worth + row[n])
        reached = following
    return reached.get(budget, -math.inf)


def assert_valid(solution: Solution, case: Case) -> None:
    counts = solution.counts_P
    assert counts.sum() == case.budget
    assert ((counts >= case.low_P) & (counts <= case.high_P) & (counts != 1)).all()
    worth = case.values_P_N[np.arange(counts.size), counts].sum()
    assert solution.value == pytest.approx(worth, rel=1e-9, abs=1e-12)


# Optimality.


@settings(max_examples=250)
@given(cases())
def test_optimal_against_brute_force(case: Case) -> None:
    best = by_brute_force(case)
    if best == -math.inf:
        with pytest.raises(ValueError, match=f"sum to a budget of {case.budget}"):
            solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
        return
    solution = solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
    assert_valid(solution, case)
    assert solution.gap == 0
    assert solution.value == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases(most_prompts=12, most=16))
def test_optimal_against_another_dynamic_programme(case: Case) -> None:
    best = by_forward_programme(case.values_P_N, case.budget, case.low_P, case.high_P)
    assume(best > -math.inf)
    solution = solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
    assert_valid(solution, case)
    assert solution.value == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("low", [0, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_optimal_at_a_size_where_the_price_is_found_by_sampling(low: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = np.round(rng.beta(0.5, 0.5, 60) * 16) / 16
    values = knapsack_value(rates, 40)
    budget = int(rng.integers(60 * low, 60 * 12))
    low_P, high_P = np.full(60, low), np.full(60, 40)
    solution = solve(lambda rows, stop: knapsack_marginals(rates[rows], stop), budget, low_P, high_P)
    assert_valid(solution, Case(values, budget, low_P, high_P))
    assert solution.value == pytest.approx(by_forward_programme(values, budget, low_P, high_P), rel=1e-12)


@settings(max_examples=150)
@given(wild_cases())
def test_tables_of_any_shape_are_solved_too(case: Case) -> None:
    best = by_brute_force(case)
    if best == -math.inf:
        with pytest.raises(ValueError, match="sum to a budget"):
            solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
        return
    solution = solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
    assert_valid(solution, case)
    assert solution.value == pytest.approx(best, abs=1e-9)


# Prices.


@settings(max_examples=100)
@given(cases())
def test_the_price_proves_the_plan(case: Case) -> None:
    """Lagrangian bound: at this price no counts have a greater value; with pairs the bound need not be tight."""
    assume(by_brute_force(case) > -math.inf)
    solution = solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
    free = case.low_P.sum() < case.budget
    assume(free)
    columns = np.arange(case.values_P_N.shape[1])
    open_ = (columns >= case.low_P[:, None]) & (columns <= case.high_P[:, None]) & (columns != 1)
    surplus = np.where(open_, case.values_P_N - solution.price * columns, -np.inf).max(axis=1).sum()
    bound = surplus + solution.price * case.budget
    assert bound >= solution.value - 1e-9
    if (case.low_P > 0).all():
        assert bound == pytest.approx(solution.value, rel=1e-9, abs=1e-12)


@given(cases(), st.integers(0, 1))
def test_more_budget_never_lowers_the_value(case: Case, low: int) -> None:
    case = Case(np.maximum.accumulate(case.values_P_N, axis=1), case.budget, case.low_P, case.high_P)
    assume((case.low_P >= 2 * low).all())
    found = []
    for budget in range(case.budget, int(case.high_P.sum()) + 1):
        try:
            found.append(solve_table(case.values_P_N, budget, case.low_P, case.high_P).value)
        except ValueError:
            found.append(math.nan)  # a single rollout that fits no group
    reached = [value for value in found if not math.isnan(value)]
    if (case.low_P > 0).all():
        assert len(reached) == len(found)
        assert all(later >= value - 1e-12 for value, later in itertools.pairwise(reached))


# Symmetries.


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_prompts_does_not_change_the_value(case: Case, random: object) -> None:
    assume(by_brute_force(case) > -math.inf)
    order = list(range(case.low_P.size))
    random.shuffle(order)  # type: ignore[attr-defined]
    solution = solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
    turned = solve_table(case.values_P_N[order], case.budget, case.low_P[order], case.high_P[order])
    assert turned.value == pytest.approx(solution.value, rel=1e-9, abs=1e-12)
    assert turned.price == pytest.approx(solution.price, rel=1e-9, abs=1e-12)


@given(
    st.lists(st.tuples(st.floats(0.1, 40), st.floats(0.1, 40)), min_size=1, max_size=30),
    st.integers(0, 60),
    st.sampled_from([0, 2]),
)
def test_a_function_gives_the_same_plan_as_its_table(pairs: list[tuple[float, float]], mean: int, low: int) -> None:
    alpha, beta = np.array(pairs).T
    low_P, high_P = np.full(alpha.size, low), np.full(alpha.size, 64)
    budget = max(mean, 2) * alpha.size
    lazy = solve(lambda rows, stop: expected_knapsack_marginals(alpha[rows], beta[rows], stop), budget, low_P, high_P)
    whole = solve(expected_knapsack_marginals(alpha, beta, 64), budget, low_P, high_P)
    np.testing.assert_array_equal(lazy.counts_P, whole.counts_P)
    assert lazy.price == whole.price
    assert lazy.value == pytest.approx(whole.value, rel=1e-12)


def test_a_function_is_evaluated_only_as_far_as_needed() -> None:
    evaluated = []
    rates = np.linspace(0.3, 0.7, 2000)

    def marginals(rows: IntArray, stop: int) -> FloatArray:
        evaluated.append(rows.size * stop)
        return knapsack_marginals(rates[rows], stop)

    solve(marginals, 8 * 2000, np.full(2000, 2), np.full(2000, 1024))
    assert sum(evaluated) < 2000 * 60


def test_a_function_may_be_constant_beyond_the_evaluated_columns() -> None:
    low_P, high_P = np.full(3, 2), np.full(3, 400)
    lazy = solve(lambda rows, stop: np.ones((rows.size, stop)), 450, low_P, high_P)
    assert lazy.counts_P.tolist() == solve(np.ones((3, 400)), 450, low_P, high_P).counts_P.tolist() == [400, 48, 2]


def test_a_third_rollout_above_its_pair_by_rounding_is_not_selected_before_it() -> None:
    marginals = np.tile([0.3, 0.3, np.nextafter(0.3, 1)], (2, 1))
    for budget, counts in ((2, [2, 0]), (3, [3, 0]), (4, [2, 2]), (5, [3, 2])):
        found = solve(marginals, budget, np.zeros(2), np.full(2, 3)).counts_P.tolist()
        assert sorted(found, reverse=True) == counts


def test_ties_are_broken_by_prompt_order() -> None:
    marginals = knapsack_marginals(np.full(5, 0.25), 8)
    counts = solve(marginals, 18, np.full(5, 2), np.full(5, 8)).counts_P
    assert counts.tolist() == [4, 4, 4, 3, 3]


def test_the_same_call_gives_the_same_plan() -> None:
    rates = np.random.default_rng(0).integers(0, 17, 300) / 16
    plans = [solve(knapsack_marginals(rates, 64), 2400, np.zeros(300), np.full(300, 64)).counts_P for _ in range(2)]
    np.testing.assert_array_equal(*plans)


# Corners.


def test_each_of_the_three_repairs_of_a_cut_pair() -> None:
    # The budget ends within a pair. Marginals, pairs in halves.
    add_one = np.array([[5, 5, 4, 2.5], [3, 3, 0, 0]], dtype=float)
    assert solve(add_one, 4, np.zeros(2), np.array([4, 4])).counts_P.tolist() == [4, 0]
    remove_one = np.array([[5, 5, 4, -9], [3, 3, 0, 0]], dtype=float)
    assert solve(remove_one, 4, np.zeros(2), np.array([4, 4])).counts_P.tolist() == [2, 2]
    remove_pair = np.array([[5, 5, -99], [4, 4, 4]], dtype=float)
    assert solve(remove_pair, 3, np.zeros(2), np.array([2, 3])).counts_P.tolist() == [0, 3]


def test_odd_budgets_of_pairs_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no counts of 0 or at least 2 within the limits sum to a budget of 5"):
        solve(np.ones((4, 2)), 5, np.zeros(4), np.full(4, 2))
    with pytest.raises(ValueError, match="budget of 1"):
        solve(np.ones((4, 8)), 1, np.zeros(4), np.full(4, 8))


def test_no_prompts_and_no_budget() -> None:
    nothing = solve(np.zeros((0, 0)), 0, np.zeros(0), np.zeros(0))
    assert (nothing.counts_P.size, nothing.value, nothing.price, nothing.gap) == (0, 0.0, 0.0, 0.0)
    shut = solve(np.ones((3, 4)), 0, np.zeros(3), np.full(3, 4))
    assert (shut.counts_P.tolist(), shut.value, shut.price) == ([0, 0, 0], 0.0, 0.0)


@pytest.mark.parametrize("cost_P", [None, np.ones(3)])
def test_prompts_of_value_zero_get_their_lower_limits(cost_P: FloatArray | None) -> None:
    solution = solve(np.zeros((3, 8)), 12, np.full(3, 2), np.full(3, 8), cost_P)
    assert solution.value == solution.price == 0
    assert solution.counts_P.sum() == (12 if cost_P is None else 6)  # with costs, rollouts of value 0 are not bought


def test_one_prompt_gets_the_whole_budget() -> None:
    assert solve(knapsack_marginals(np.array([0.1]), 64), 50, np.array([2]), np.array([64])).counts_P.tolist() == [50]


def test_limits_without_a_choice() -> None:
    fixed = np.array([4, 0, 7])
    solution = solve(knapsack_marginals(np.array([0.1, 0.5, 0.9]), 8), 11, fixed, fixed)
    assert solution.counts_P.tolist() == [4, 0, 7]
    assert solution.price == 0
    assert solution.value == pytest.approx(knapsack_value(np.array([0.1, 0.5, 0.9]), 8)[[0, 1, 2], fixed].sum())


def test_the_whole_budget_is_spent_even_on_negative_marginals() -> None:
    marginals = np.array([[1, 1, -1, -5], [1, 1, -2, -3]], dtype=float)
    solution = solve(marginals, 7, np.zeros(2), np.full(2, 4))
    assert solution.counts_P.tolist() == [3, 4]
    assert solution.value == -2


def test_rounding_does_not_make_a_row_non_concave() -> None:
    rates = np.random.default_rng(1).random(400)
    values = np.cumsum(knapsack_marginals(rates, 128), axis=1)  # differences of sums carry rounding of their own
    table = np.concatenate([np.zeros((400, 1)), values], axis=1)
    # The dynamic programme refuses this size, so a solution shows that it was not called.
    wide = np.tile(table, (20, 1))
    solution = solve_table(wide, 8 * len(wide), np.zeros(len(wide)), np.full(len(wide), 16))
    assert solution.counts_P.sum() == 8 * len(wide)


# Costs.


@settings(max_examples=150)
@given(cases(most_prompts=3, most=5), st.data())
def test_with_costs_the_gap_is_an_upper_bound(case: Case, data: st.DataObject) -> None:
    costs = data.draw(st.lists(COSTS, min_size=case.low_P.size, max_size=case.low_P.size))
    least = float((case.low_P * np.array(costs)).sum())
    budget = least + data.draw(st.floats(0, 30))
    solution = solve_table(case.values_P_N, budget, case.low_P, case.high_P, np.array(costs))
    best = by_brute_force(case, costs, budget)
    assert solution.value <= best + 1e-9
    assert best <= solution.value + solution.gap + 1e-9
    assert float((solution.counts_P * costs).sum()) <= budget * (1 + 1e-9)
    assert ((solution.counts_P >= case.low_P) & (solution.counts_P <= case.high_P) & (solution.counts_P != 1)).all()
    step = np.where(solution.counts_P == 0, 2, 1)  # no rollout of positive value fits the remaining budget
    fits = np.array(costs) * step < budget - float((solution.counts_P * costs).sum()) - 1e-9
    more = np.flatnonzero(fits & (solution.counts_P + step <= case.high_P))
    following = case.values_P_N[more, (solution.counts_P + step)[more]] - case.values_P_N[more, solution.counts_P[more]]
    assert (following <= 1e-9).all()
    pairs = np.where(case.low_P == 0, case.values_P_N[:, 2], 0.0).max()
    assert solution.gap <= max(pairs, np.diff(case.values_P_N, axis=1)[:, 2:].max(), 0.0) + 1e-9


def test_the_gap_includes_the_value_of_an_expensive_prompt_that_did_not_fit() -> None:
    """The cheap pair has the higher value per cost, after which the expensive one, of higher value, does not fit."""
    marginals = np.array([[1.1, 1.1], [2.0, 2.0]])
    solution = solve(marginals, 4.0, np.zeros(2), np.full(2, 2), np.array([1.0, 2.0]))
    assert solution.counts_P.tolist() == [2, 0]
    assert solution.value == pytest.approx(2.2)
    assert 4.0 <= solution.value + solution.gap <= 4.2 + 1e-9


@given(cases(most_prompts=3, most=5), st.sampled_from([0.5, 1.0, 4.0]))
def test_equal_costs_are_a_change_of_unit(case: Case, cost: float) -> None:
    """With marginals of at least 0 and no optional pairs, equal costs give the value of the problem without costs."""
    case = Case(np.maximum.accumulate(case.values_P_N, axis=1), case.budget, case.low_P, case.high_P)
    assume((case.low_P > 0).all())
    counted = solve_table(case.values_P_N, case.budget, case.low_P, case.high_P)
    costs = np.full(case.low_P.size, cost)
    paid = solve_table(case.values_P_N, case.budget * cost, case.low_P, case.high_P, costs)
    assert paid.value == pytest.approx(counted.value, rel=1e-9, abs=1e-12)
    assert paid.gap == 0


def test_the_gap_is_small_relative_to_the_value_for_many_prompts() -> None:
    rng = np.random.default_rng(0)
    marginals = knapsack_marginals(rng.random(500), 64)
    solution = solve(marginals, 4e5, np.full(500, 2), np.full(500, 64), rng.uniform(50, 200, 500))
    assert 0 <= solution.gap < 1e-4 * solution.value


# Bad input.


@pytest.mark.parametrize(
    ("budget", "low", "high", "message"),
    [
        (3, [2, 2], [4, 4], r"budget of 3 rollouts is below the 4 that the lower limits of 2 prompts ask for"),
        (9, [2, 2], [4, 4], r"budget of 9 rollouts is above the 8 that the upper limits of 2 prompts allow"),
        (4.5, [2, 2], [4, 4], r"budget of 4.5 rollouts is not a whole number"),
        (math.nan, [2, 2], [4, 4], r"budget of nan rollouts is not a whole number"),
        (math.inf, [2, 2], [4, 4], r"budget of inf rollouts is not a whole number"),
        (4, [2, 1], [4, 4], r"prompt 1 has a lower limit of 1: the smallest group has 2 rollouts"),
        (4, [0, 0], [4, 1], r"prompt 1 has an upper limit of 1"),
        (4, [-2, 2], [4, 4], r"prompt 0 has a lower limit of -2"),
        (4, [2, 3], [4, 2], r"prompt 1 has limits 3..2: the lower one is larger"),
        (4, [2, 2, 2], [4, 4], r"shapes \(3,\) and \(2,\)"),
        (4, [2, 2], [4, 5], r"a table of shape \(2, 4\) does not hold 2 prompts up to 5 rollouts"),
    ],
)
def test_impossible_problems_are_refused_with_their_numbers(
    budget: float, low: list[int], high: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solve(np.ones((2, 4)), budget, np.array(low), np.array(high))


@pytest.mark.parametrize(
    ("budget", "costs", "message"),
    [
        (8.0, [1.0, 0.0], r"prompt 1 costs 0.0 a rollout"),
        (8.0, [math.nan, 1.0], r"prompt 0 costs nan a rollout"),
        (8.0, [1.0], r"2 prompts need as many costs, not an array of shape \(1,\)"),
        (3.0, [1.0, 1.0], r"budget of 3.0 does not cover the 4.0"),
        (math.nan, [1.0, 1.0], r"budget of nan is not finite"),
        (math.inf, [1.0, 1.0], r"budget of inf is not finite"),
    ],
)
def test_impossible_costs_are_refused_with_their_numbers(budget: float, costs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(np.ones((2, 4)), budget, np.full(2, 2), np.full(2, 4), np.array(costs))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    marginals = np.ones((2, 4))
    marginals[1, 2] = wrong
    with pytest.raises(ValueError, match="NaN or infinity"):
        solve(marginals, 6, np.full(2, 2), np.full(2, 4))


def test_a_function_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"marginals of 2 prompts up to 4 rollouts have shape \(4, 2\)"):
        solve(lambda rows, stop: np.ones((stop, rows.size)), 6, np.full(2, 2), np.full(2, 4))


# Smallest groups of more than two rollouts.


@settings(max_examples=250, deadline=None)
@given(st.data(), st.integers(3, 7), st.integers(1, 9), st.sampled_from(["rates", "ties", "free"]))
def test_a_smallest_group_is_kept_at_the_greatest_value(
    data: st.DataObject, smallest: int, prompts: int, kind: str
) -> None:
    most = data.draw(st.integers(smallest, 3 * smallest + 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    if kind == "rates":
        values = knapsack_value(rng.beta(0.5, 0.5, prompts), most)
    else:
        marginals = rng.integers(0, 5, (prompts, most)) / 4 if kind == "ties" else rng.random((prompts, most))
        values = np.concatenate([np.zeros((prompts, 1)), np.cumsum(-np.sort(-marginals, axis=1), axis=1)], axis=1)
    low_P = np.where(rng.random(prompts) < 0.8, 0, smallest)
    high_P = np.where(rng.random(prompts) < 0.7, most, smallest)
    budget = data.draw(st.integers(int(low_P.sum()), int(high_P.sum())))
    try:
        best = solve_by_dynamic_programme(values, budget, low_P, high_P, min_group=smallest).value
    except ValueError:
        with pytest.raises(ValueError, match=f"0 or at least {smallest} within the limits sum to a budget of {budget}"):
            solve_table(values, budget, low_P, high_P, min_group=smallest)
        return
    solution = solve_table(values, budget, low_P, high_P, min_group=smallest)
    assert solution.counts_P.sum() == budget
    assert ((solution.counts_P == 0) | (solution.counts_P >= smallest)).all()
    assert ((solution.counts_P >= low_P) & (solution.counts_P <= high_P)).all()
    assert solution.gap == 0
    assert solution.value == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert solution.value == pytest.approx(values[np.arange(prompts), solution.counts_P].sum(), rel=1e-9, abs=1e-12)


@given(st.integers(3, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_costs_keep_the_smallest_group_within_the_gap(smallest: int, prompts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = knapsack_value(rng.beta(0.5, 0.5, prompts), 2 * smallest)
    costs = rng.integers(1, 4, prompts).astype(float)
    budget = float(rng.integers(0, 1 + int(costs.sum()) * smallest))
    low_P, high_P = np.zeros(prompts, np.int64), np.full(prompts, 2 * smallest)
    best = solve_by_dynamic_programme(values, budget, low_P, high_P, costs, smallest).value
    solution = solve_table(values, budget, low_P, high_P, costs, smallest)
    assert ((solution.counts_P == 0) | (solution.counts_P >= smallest)).all()
    assert (solution.counts_P * costs).sum() <= budget
    assert solution.value <= best + 1e-12 <= solution.value + solution.gap + 1e-9


@pytest.mark.parametrize("smallest", [1, 0, 2.5, True])
def test_a_smallest_group_out_of_range_is_refused(smallest: int) -> None:
    with pytest.raises(ValueError, match="min_group is"):
        solve(np.ones((1, 4)), 4, np.array([0]), np.array([4]), min_group=smallest)
