from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.metrics import STATUSES, mixed_probability, status, step_metrics, transition_matrix
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan


def make_plan(counts: list[int], rates: list[float] | None = None, pseudo_count: float = 2.0) -> Plan:
    size = len(counts)
    return Plan(
        step=3,
        prompt_ids=tuple(f"q{i}" for i in range(size)),
        counts_P=np.array(counts, dtype=np.int64),
        budget=sum(counts),
        low_P=np.zeros(size, dtype=np.int64),
        high_P=np.full(size, 128),
        success_rates_P=np.array(rates if rates is not None else [0.5] * size),
        pseudo_count_P=np.full(size, pseudo_count),
        seen_P=np.arange(size) > 0,
        price=0.25,
    )


def outcomes(*groups: list[float], threshold: float = 1.0) -> Outcomes:
    return Outcomes.of_groups(3, [(f"q{i}", group) for i, group in enumerate(groups)], threshold)


def test_each_metric_on_a_step_small_enough_to_count_by_hand() -> None:
    #       mixed         all right   all wrong  left out
    plan = make_plan([4, 2, 2, 0])
    metrics = step_metrics(plan, outcomes([1, 0, 0, 0], [1, 1], [0, 0], []))
    assert metrics["frac_prompts_mixed"] == metrics["frac_solved_some"] == pytest.approx(1 / 3)
    assert metrics["frac_rollouts_mixed"] == 0.5
    assert metrics["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert metrics["frac_solved_all"] == metrics["frac_solved_none"] == pytest.approx(1 / 3)
    assert metrics["zero_gradient_rollouts"] == 4
    assert (metrics["count_min"], metrics["count_mean"], metrics["count_max"]) == (2, pytest.approx(8 / 3), 4)
    assert (metrics["candidates"], metrics["refused"]) == (4, 1)
    assert metrics["price"] == 0.25
    assert metrics["frac_unseen"] == pytest.approx(1 / 3)
    # Beta(1, 1): the number of successes among n is uniform on 0..n, so that mixed has the chance (n-1)/(n+1).
    assert metrics["predicted_mixed"] == pytest.approx((3 / 5 + 1 / 3 + 1 / 3) / 3)
    assert metrics["brier_mixed"] == pytest.approx(((1 - 3 / 5) ** 2 + (1 / 3) ** 2 * 2) / 3)


def test_graded_rewards_can_differ_without_a_success() -> None:
    metrics = step_metrics(make_plan([2, 2]), outcomes([0.2, 0.4], [0.7, 0.9]))
    assert metrics["frac_prompts_mixed"] == 1
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["frac_solved_none"] == 1
    assert metrics["frac_solved_some"] == 0


def test_groups_without_answers_count_in_the_denominator_only() -> None:
    nan = math.nan
    metrics = step_metrics(make_plan([2, 2, 2]), outcomes([nan, nan], [], [1, 0]))
    assert metrics["frac_prompts_mixed"] == pytest.approx(1 / 3)
    assert metrics["frac_reward_zero_std"] == metrics["frac_solved_none"] == metrics["frac_solved_all"] == 0
    assert metrics["frac_rollouts_mixed"] == 0.5
    assert metrics["zero_gradient_rollouts"] == 2


@pytest.mark.filterwarnings("error")
def test_a_step_without_rollouts_is_nan_and_not_a_warning() -> None:
    metrics = step_metrics(make_plan([0, 0]), outcomes([], []))
    assert math.isnan(metrics["frac_prompts_mixed"])
    assert math.isnan(metrics["frac_rollouts_mixed"])
    assert math.isnan(metrics["count_max"])
    assert metrics["zero_gradient_rollouts"] == 0
    empty = step_metrics(make_plan([]), outcomes())
    assert math.isnan(empty["brier_mixed"])


def test_an_unknown_forecast_does_not_affect_other_groups() -> None:
    metrics = step_metrics(make_plan([2, 2], rates=[math.nan, 0.5]), outcomes([1, 0], [1, 0]))
    assert metrics["frac_prompts_mixed"] == 1
    assert metrics["brier_mixed"] == pytest.approx((1 - 1 / 3) ** 2)


def test_outcomes_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="plan's order"):
        step_metrics(make_plan([2, 2]), outcomes([1, 0]))


RATES = st.floats(0, 1)
COUNTS = st.integers(0, 40)


def mixed(p: float, pseudo_count: float, n: int) -> float:
    return float(mixed_probability(np.array([p]), np.array([pseudo_count]), np.array([n]))[0])


@given(RATES, COUNTS)
def test_a_point_estimate_gives_the_binomial_formula(p: float, n: int) -> None:
    expected = 1 - p**n - (1 - p) ** n if n else 0.0
    assert mixed(p, math.inf, n) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0.01, 0.99), st.floats(0.1, 1e4), st.integers(2, 60))
def test_a_beta_belief_agrees_with_the_gamma_functions(p: float, pseudo_count: float, n: int) -> None:
    def log_moment(a: float) -> float:
        return math.lgamma(a + n) - math.lgamma(a) - math.lgamma(pseudo_count + n) + math.lgamma(pseudo_count)

    expected = 1 - math.exp(log_moment(p * pseudo_count)) - math.exp(log_moment((1 - p) * pseudo_count))
    assert mixed(p, pseudo_count, n) == pytest.approx(expected, abs=1e-8)


def test_the_forecast_is_nan_without_evidence() -> None:
    assert math.isnan(mixed(0.5, 0.0, 8))


@given(RATES, st.floats(1e-6, math.inf), COUNTS)
def test_mixed_probability_is_a_probability_and_grows_with_the_group(p: float, pseudo_count: float, n: int) -> None:
    now, more = mixed(p, pseudo_count, n), mixed(p, pseudo_count, n + 1)
    assert 0 <= now <= 1
    assert more >= now - 1e-12
    if n < 2:
        assert now == 0


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.0, "extremely hard"),
        (1e-9, "hard"),
        (0.2, "hard"),  # the upper end of (0, .2]
        (0.2000001, "medium"),
        (0.7999999, "medium"),
        (0.8, "easy"),  # the lower end of [.8, 1)
        (0.9999999, "easy"),
        (1.0, "extremely easy"),
    ],
)
def test_status_boundaries(rate: float, expected: str) -> None:
    assert STATUSES[int(status(np.array([rate]))[0])] == expected


def test_transition_matrix_counts_every_prompt_once_and_skips_the_unknown() -> None:
    before = np.array([0.0, 0.0, 0.5, 1.0, math.nan, 0.5])
    after = np.array([0.0, 0.1, 0.9, 1.0, 0.5, math.nan])
    matrix = transition_matrix(before, after)
    assert matrix.sum() == 4
    assert matrix[0, 0] == matrix[0, 1] == matrix[2, 3] == matrix[4, 4] == 1
