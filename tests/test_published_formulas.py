"""The rules that decide before the step, against numbers worked out by hand or by brute force."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.cero import cero_rule
from knapsack_arena.published.coba import Coba, alpha_of, coba_marginals, competing_share, released_counts
from knapsack_arena.published.e3 import e3_rule, ranks
from knapsack_arena.published.gdro import bin_variances, gdro_rule
from knapsack_arena.published.gvm import cures_rule, gvm_rule, gvm_shares
from knapsack_arena.published.released import credited_marginals, released_rule
from knapsack_arena.published.sgpo import sgpo_rule
from knapsack_arena.published.vip import expected_variance, vip_dr_grpo_rule, vip_rloo_rule
from knapsack_rl import Outcomes, solve
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rules import AllocationRule
from knapsack_rl.values import knapsack_value


def believed(rates: list[float], strength: float = 1e9, seen: bool = True) -> Forecast:
    size = len(rates)
    return Forecast(np.array(rates), np.full(size, strength), np.full(size, seen), np.full(size, np.nan))


def counts(
    rule: AllocationRule, rates: list[float], budget: int, low: int = 2, high: int = 128, **of_belief: float
) -> list[int]:
    problem = rule(believed(rates, **of_belief), budget, low, high)  # type: ignore[arg-type]
    return solve(problem.marginals, budget, problem.low_P, problem.high_P).counts_P.tolist()


def brute_force(value: Callable[[int, int], float], prompts: int, budget: int, low: int, high: int) -> float:
    choices = (c for c in product(range(low, high + 1), repeat=prompts) if sum(c) == budget)
    return max(sum(value(i, n) for i, n in enumerate(c)) for c in choices)


# ----------------------------------------------------------------------------------------------------------- VIP


def test_vip_rloo_is_one_plus_the_root_of_a_over_lambda() -> None:
    # a = 4 p (1-p) = 1, .64, .36 and lambda = .01: n = 1 + 10, 1 + 8, 1 + 6
    assert counts(vip_rloo_rule, [0.5, 0.2, 0.1], 27) == [11, 9, 7]


@pytest.mark.parametrize("dr_grpo", [False, True])
def test_vip_leaves_the_least_variance_there_is(dr_grpo: bool) -> None:
    rates = [0.5, 0.15, 0.03]

    def less_variance(i: int, n: int) -> float:
        a = 4 * rates[i] * (1 - rates[i])
        return -a * ((n - 1) / n**2 if dr_grpo else 1 / (n - 1))

    found = counts(vip_dr_grpo_rule if dr_grpo else vip_rloo_rule, rates, 20, 2, 12)
    total = sum(less_variance(i, n) for i, n in enumerate(found))
    assert total == pytest.approx(brute_force(less_variance, 3, 20, 3, 12), abs=1e-9)


def test_vip_gives_three_at_least_where_that_can_be_paid() -> None:
    assert min(counts(vip_rloo_rule, [0.5, 1e-6, 1e-6], 60)) == 3
    assert counts(vip_dr_grpo_rule, [0.5, 0.001, 0.001], 6) == [2, 2, 2]


def test_expected_variance_is_that_of_the_beta_belief() -> None:
    # Beta(2, 3): 2 * 3 / (5 * 6)
    assert expected_variance(believed([0.4], strength=5.0))[0] == pytest.approx(0.2)


# ---------------------------------------------------------------------------------------------------------- CERO


def test_cero_pays_the_same_price_everywhere() -> None:
    rates, had = [0.5, 0.3, 0.1], 6.0
    found = counts(cero_rule, rates, 60, strength=had)
    weights = [p * (1 - p) * had / (had + 1) for p in rates]
    last = [w * np.log1p(1 / (had + n)) for w, n in zip(weights, found, strict=True)]
    following = [w * np.log1p(1 / (1 + had + n)) for w, n in zip(weights, found, strict=True)]
    assert max(following) <= min(last) + 1e-12


def test_cero_gives_less_to_prompts_with_more_rollouts() -> None:
    forecast = Forecast(np.full(2, 0.5), np.array([4.0, 40.0]), np.full(2, True), np.full(2, np.nan))
    problem = cero_rule(forecast, 24, 2, 64)
    first, second = solve(problem.marginals, 24, problem.low_P, problem.high_P).counts_P
    assert first > second


# ------------------------------------------------------------------------------------ GDRO, GVM, CurES, E3, sGPO


def test_gdro_goes_by_the_root_of_the_bins_variance() -> None:
    # bins: {.5, .5} with .25, {.1} with .09: roots 5 : 5 : 3
    assert counts(gdro_rule, [0.5, 0.5, 0.1], 26) == [10, 10, 6]
    np.testing.assert_allclose(bin_variances(np.array([0.0, 0.02, 1.0])), [0.0098, 0.0098, 0.0])


def test_gvm_is_its_formula() -> None:
    # p = .25: 1 / sqrt(.25 + .004); p = 1: 1 / sqrt(1.001)
    np.testing.assert_allclose(gvm_shares(np.array([0.25, 1.0, 0.0])), [0.254**-0.5, 1.001**-0.5, 0.0])
    assert counts(gvm_rule, [0.25, 1.0], 30) == [20, 10]
    assert counts(gvm_rule, [0.25, 0.0], 30) == [28, 2]


def test_cures_divides_by_the_deviation() -> None:
    assert counts(cures_rule, [0.5, 0.1, 0.0], 18) == [10, 6, 2]


def test_e3_is_linear_in_the_rank() -> None:
    # C - B n_min = 12, ranks 1, 2, 3
    assert counts(e3_rule, [0.9, 0.5, 0.1], 18) == [4, 6, 8]
    np.testing.assert_array_equal(ranks(np.array([0.9, 0.5, 0.5, 0.1])), [1, 2.5, 2.5, 4])


def test_e3_gives_unseen_prompts_the_least() -> None:
    forecast = Forecast(np.array([0.9, 0.1, 0.5]), np.full(3, 16.0), np.array([True, True, False]), np.full(3, np.nan))
    assert e3_rule(forecast, 18, 2, 64).low_P.tolist() == [6, 10, 2]


def test_sgpo_is_one_over_p() -> None:
    assert counts(sgpo_rule, [0.5, 0.25, 0.125], 28, 2, 64) == [4, 8, 16]
    assert counts(sgpo_rule, [1.0, 0.0], 40, 2, 38) == [2, 38]


@pytest.mark.parametrize(
    "rule", [vip_rloo_rule, vip_dr_grpo_rule, cero_rule, gdro_rule, gvm_rule, cures_rule, e3_rule, sgpo_rule]
)
@pytest.mark.parametrize("rates", [[0.0] * 5, [1.0] * 5, [0.5] * 5])
def test_prompts_that_are_all_alike_are_treated_alike(rule: AllocationRule, rates: list[float]) -> None:
    found = counts(rule, rates, 40)
    assert found == [8] * 5


# ------------------------------------------------------------------------------------------------------- CoBA-RL


def test_coba_favours_easy_prompts_while_the_policy_fails() -> None:
    assert alpha_of(0.8) == pytest.approx(1 + 9 * 0.8)
    assert alpha_of(0.5) == pytest.approx(1 + 9 * 0.5)
    assert alpha_of(0.3) == pytest.approx(1 + 9 / (1 + np.exp(2.0)))
    assert alpha_of(1.0) == 10.0


def test_coba_marginals_add_up_to_its_value() -> None:
    p, alpha, tau = 0.3, 4.0, 3.0
    density = p**3 * (1 - p) ** 6  # Beta(4, 7), without its constant
    total = coba_marginals(np.array([p]), alpha, tau, 12)[0].sum()
    assert total == pytest.approx(density * (1 - np.exp(-12 * p * (1 - p) / tau)))


def test_coba_without_history_is_uniform_and_then_follows_its_density() -> None:
    coba = Coba()
    assert coba.plan(["a", "b", "c"], 24, 0).counts_P.tolist() == [8, 8, 8]
    coba.observe(Outcomes.of_groups(0, [("a", [1.0] * 7 + [0.0]), ("b", [1.0, 0.0] * 4), ("c", [0.0] * 7 + [1.0])]))
    assert coba.failures == [pytest.approx(0.5)]
    easy, middle, hard = coba.plan(["a", "b", "c"], 60, 1).counts_P.tolist()
    assert middle > easy > 0 and middle > hard  # alpha = beta = 5.5: the density is highest at 1/2


def test_coba_remembers_failures_across_a_resume(tmp_path: Path) -> None:
    coba, resumed = Coba(released=True), Coba(released=True)
    for step in range(12):
        coba.observe(Outcomes.of_groups(step, [("a", [step / 12 > 0.5, 0.0]), ("b", [0.0, 1.0, 0.0])]))
    coba.save(tmp_path / "coba.npz")
    resumed.load(tmp_path / "coba.npz")
    assert resumed.failures == coba.failures and len(coba.failures) == 3
    plans = [each.plan(["a", "b", "c"], 60, 12).counts_P.tolist() for each in (coba, resumed)]
    assert plans[0] == plans[1]


def test_released_coba_keeps_the_very_hard_out_of_the_heap() -> None:
    rates = np.array([0.01, 0.3, 0.4, 0.5, 0.995])
    found = released_counts(rates, 5.5, 60, 2, 128)
    assert found.sum() == 60
    # 50 spare, three of five compete for .8 of them; the rest goes to the hard, and nothing is left for the easy
    assert found[[1, 2, 3]].sum() == 6 + 40
    assert found[0] == 2 + 10
    assert found[4] == 2
    assert competing_share(np.array([True, False, False, False])) == pytest.approx(0.7)


def test_released_coba_takes_tau_from_competing_prompts() -> None:
    # Those in the band: .2, .8, mean .5, variance .09, tau = 3 + 9 * .09 / .1667 = 7.859. Over all six: more.
    rates = np.array([0.2, 0.8, 0.0, 0.0, 1.0, 1.0])
    extra = int(88 * (0.6 + 0.4 / 3))  # of 100 rollouts, for the two of six that compete
    limits = np.full(2, 2), np.full(2, 128)
    for tau, same in ((3 + 9 * 0.09 / 0.1667, True), (3 + 9 * rates.var() / 0.1667, False)):
        expected = solve(lambda rows, n: coba_marginals(rates[:2][rows], 5.6, tau, n), 4 + extra, *limits).counts_P  # noqa: B023
        assert (released_counts(rates, 5.6, 100, 2, 128)[:2].tolist() == expected.tolist()) == same


def test_released_coba_gives_late_prompts_less() -> None:
    # 16 prompts, 96 spare, all 8 that compete get int(96 * .8) = 76; 20 are left for 8 unsolved ones:
    # int(20/8), int(18/8), int(16/8), int(14/8), ... = 2 2 2 1 1 1 1 1, and the 9 that leaves as 2 1 1 1 1 1 1 1
    found = released_counts(np.array([0.0] * 8 + [0.5] * 8), 5.5, 128, 2, 128)
    assert found[:8].tolist() == [6, 5, 5, 4, 4, 4, 4, 4]
    assert found[8:].sum() == 16 + 76


# --------------------------------------------------------------------------------------------- released Knapsack


def their_programme(rates: FloatArray, extra: int, low: int, high: int) -> float:
    """The authors' dynamic programme with its wrong credit: 0 for no extra, Value(low + k) for k."""
    value = knapsack_value(rates, high)
    best = np.full(extra + 1, -np.inf)
    best[0] = 0.0
    for i in range(rates.size):
        after = np.full_like(best, -np.inf)
        for b in range(extra + 1):
            for k in range(min(high - low, b) + 1):
                after[b] = max(after[b], best[b - k] + (value[i, low + k] if k else 0.0))
        best = after
    return float(best[extra])


def credited(rates: FloatArray, found: IntArray, low: int, high: int) -> float:
    value = knapsack_value(rates, high)
    return float(sum(value[i, n] if n > low else 0.0 for i, n in enumerate(found)))


@pytest.mark.parametrize("seed", range(20))
def test_the_released_programme_is_found_without_running_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = rng.integers(1, 16, 5) / 16
    low, high, extra = 2, 10, int(rng.integers(1, 40))
    limits = np.full(5, low), np.full(5, high)
    found = solve(lambda rows, stop: credited_marginals(rates[rows], low, stop), 10 + extra, *limits).counts_P
    assert credited(rates, found, low, high) == pytest.approx(their_programme(rates, extra, low, high), abs=1e-12)


def released(rates: list[float], budget: int, seen: list[bool] | None = None, high: int = 128) -> list[int]:
    size = len(rates)
    known = np.array(seen if seen is not None else [True] * size)
    forecast = Forecast(np.array(rates), np.full(size, 16.0), known, np.full(size, np.nan))
    problem = released_rule(forecast, budget, 2, high)
    return problem.low_P.tolist()


def test_defect_3_hardly_any_prompt_keeps_the_least() -> None:
    rates = np.array([0.5, 0.45, 0.02])
    repaired = solve(np.diff(knapsack_value(rates, 16), axis=1), 19, np.full(3, 2), np.full(3, 16)).counts_P
    assert repaired[2] == 2
    assert released(rates.tolist(), 19)[2] > 2


def test_defect_1_unseen_prompts_share_the_surplus_of_the_unsolved() -> None:
    # need of p = .5 for 90 %: 3 rollouts; 40 - (2 + 2 + 13) = 23 to spend, 20 of it surplus, half to the unseen one
    assert released([0.5, 0.0, 0.3], 40, [True, True, False]) == [5, 12, 23]


def test_defect_4_the_most_is_ignored() -> None:
    assert max(released([0.5, 0.0], 64, high=16)) > 16


@pytest.mark.parametrize(("rates", "budget"), [([0.5, 0.5], 128), ([0.5, 0.5, 0.5], 3 * 2 - 1 + 1)])
def test_where_their_code_crashes_counts_are_equal(rates: list[float], budget: int) -> None:
    assert released(rates, budget) == [budget // len(rates)] * len(rates)
