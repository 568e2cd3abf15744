"""What a recorded step says a plan was worth: against enumeration, and against numbers worked out by hand."""

from __future__ import annotations

from itertools import combinations, product
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.replay.metrics import (
    MetricAverager,
    ReplayedStep,
    believed_values,
    measure_step,
    plan_agreement,
    recorded_mixed_probability,
    recorded_values,
)
from knapsack_arena.replay.replay import ReplayedRule, StepReplay
from knapsack_arena.replay.rollouts import WithoutReplacementSampler, shuffled_rollouts
from knapsack_arena.strategies import Batch, RolloutRequest, StepGenerator, StepSpec
from knapsack_rl.outcomes import Outcomes


def pool_of(*groups: list[float]) -> Outcomes:
    return Outcomes.of_groups(0, [(f"q{i}", group) for i, group in enumerate(groups)])


def value(n: int, p: float) -> float:
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


# --------------------------------------------------------------------------------------- estimates from a group


@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, nan]), min_size=1, max_size=6), st.integers(0, 6))
def test_the_chance_of_a_mixed_group_is_the_share_of_all_draws(rewards: list[float], n: int) -> None:
    n = min(n, len(rewards))
    draws = list(combinations(rewards, n))
    mixed = [len({reward for reward in draw if not isnan(reward)}) > 1 for draw in draws]
    [chance] = recorded_mixed_probability(pool_of(rewards), np.array([n]))
    assert chance == pytest.approx(sum(mixed) / len(draws), abs=1e-12)


def test_two_of_four_with_two_successes() -> None:
    # Of the 6 pairs, one is both successes and one both failures.
    [chance] = recorded_mixed_probability(pool_of([1.0, 1.0, 0.0, 0.0]), np.array([2]))
    assert chance == pytest.approx(4 / 6)


def test_beyond_the_record_the_chance_is_that_of_its_shares() -> None:
    chances = recorded_mixed_probability(pool_of([1.0, 0.0], [0.0, 0.0], []), np.array([4, 4, 4]))
    np.testing.assert_allclose(chances, [1 - 2 / 16, 0.0, 0.0])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_both_estimates_are_unbiased(p: float, n: int) -> None:
    """Over all ways in which 6 rollouts may come out, each with its probability."""
    mean_chance = mean_value = 0.0
    for rewards in product([0.0, 1.0], repeat=6):
        weight = p ** sum(rewards) * (1 - p) ** (6 - sum(rewards))
        pool = pool_of(list(rewards))
        mean_chance += weight * recorded_mixed_probability(pool, np.array([n]))[0]
        mean_value += weight * recorded_values(pool, np.array([n]))[0]
    assert mean_chance == pytest.approx(1 - p**n - (1 - p) ** n if n else 0.0, abs=1e-12)
    assert mean_value == pytest.approx(value(n, p) if n else 0.0, abs=1e-12)


def test_the_value_of_two_by_hand() -> None:
    # SSFFF: of the 10 orders, SF or FS followed by S, F, F are 2. Of 4 answers there is only the plug-in.
    values = recorded_values(pool_of([1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], []), np.array([2, 2, 2]))
    np.testing.assert_allclose(values, [0.2, value(2, 0.25), 0.0])


def test_values_under_a_belief_by_hand() -> None:
    # Under Beta(1, 1): E[2p(1-p) p(1-p)^2] = 2 B(3, 4) = 1/30. A point estimate, and one that is certain: Value(n, p).
    rates, strength = np.array([0.5, 0.5, 0.0]), np.array([2.0, np.inf, 8.0])
    np.testing.assert_allclose(believed_values(rates, strength, np.array([2, 3, 5])), [1 / 30, value(3, 0.5), 0.0])


# --------------------------------------------------------------------------------------------- a step by hand


def by_hand() -> ReplayedStep:
    """a: asked 2 of SSFF, got S and F. b: asked 3 of FF, got both. c was taken and refused."""
    available = Outcomes(
        step=0,
        prompt_ids=("a", "b", "c"),
        counts_P=np.array([4, 2, 2]),
        rewards_PG=np.array([1, 1, 0, 0, 0, 0, 1, 0], dtype=np.float64),
        tokens_PG=np.array([10, 20, 30, 40, 5, 7, 1, 1]),
    )
    drawn = Outcomes.of_groups(0, [("a", [1.0, 0.0]), ("b", [0.0, 0.0]), ("c", [])])
    return ReplayedStep(
        available=available,
        requested_P=np.array([2, 3, 0]),
        drawn=drawn,
        success_rates_P=np.array([0.5, 0.25, nan]),
        pseudo_count_P=np.array([2.0, np.inf, nan]),
        rounds=1,
        trained=4,
    )


def test_a_step_by_hand() -> None:
    values = measure_step(by_hand(), plan_agreement(np.array([2, 3, 0]), np.array([3, 1, 1]))).values
    expected = {
        "rounds": 1, "prompts": 2, "largest": 3, "rollouts": 5, "short": 1, "trained": 4,
        "tokens": 2 * 25 + 3 * 6,
        "mixed_prompts_realised": 1, "mixed_rollouts_realised": 2, "zero_gradient_rollouts": 2,
        "value_realised": 0.5 * 0.25,  # a, at the recorded pass rate
        "mixed_prompts_expected": 4 / 6, "mixed_rollouts_expected": 8 / 6,
        "value_expected": value(2, 0.5),
        # a under Beta(1, 1): the chance that 2 differ is 1/3. b at p = 1/4, 3 rollouts.
        "mixed_prompts_believed": 1 / 3 + 1 - 0.25**3 - 0.75**3,
        "value_believed": 1 / 30 + value(3, 0.25),
        # a came out mixed; b, of which 2 came, did not, where 3/8 was expected.
        "forecasts": 2, "forecasts_mixed": 2, "brier_mixed": ((1 / 3 - 1) ** 2 + (3 / 8) ** 2) / 2,
        "brier_success": (0.25 + 0.25**2) / 2,
        "overlap": (2 + 1) / 5, "same_plan": 0,
    }  # fmt: skip
    assert values.keys() == expected.keys()
    for name, number in expected.items():
        assert values[name] == pytest.approx(number), name


def test_counts_and_calibration_by_hand() -> None:
    measured = measure_step(by_hand())
    np.testing.assert_array_equal(measured.requested_B, [3, 0, 2, 0, 0])  # b was never solved, a half of the time
    np.testing.assert_array_equal(measured.prompts_B, [1, 0, 2, 0, 0])
    np.testing.assert_array_equal(measured.calibration_BC[5], [1, 0.5, 0.5])
    np.testing.assert_array_equal(measured.calibration_BC[2], [1, 0.25, 0.0])
    assert isnan(measured.values["overlap"])


def test_brier_scores_are_averaged_over_forecasts() -> None:
    first, second = measure_step(by_hand()), measure_step(by_hand())
    second.values.update({"brier_mixed": 1.0, "forecasts_mixed": 6.0, "rollouts": 15.0, "largest": 9.0})
    third = measure_step(by_hand())
    third.values.update({"brier_mixed": nan, "forecasts_mixed": 0.0})
    averages = MetricAverager()
    for measured in (first, second, third):
        averages.add(measured)
    means = averages.means()
    assert means["brier_mixed"] == pytest.approx((2 * first.values["brier_mixed"] + 6 * 1.0) / 8)
    assert means["rollouts"] == pytest.approx((5 + 15 + 5) / 3)
    assert means["largest"] == 9
    assert means["frac_rollouts_mixed"] == pytest.approx(6 / (25 - 3))
    assert averages.counts_by_status()["extremely hard"] == 3
    assert averages.calibration()[0] == {"prompts": 3, "forecast": 0.25, "observed": 0.0}
    assert MetricAverager().means() == {}


# --------------------------------------------------------------------------------------------- rules of several rounds


class PilotThenRest:
    """Two of each, then all that is left of the budget to the first mixed prompt."""

    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(spec.groups)
        pilot = yield RolloutRequest(ids, np.full(len(ids), 2), np.full(len(ids), 0.5))
        mixed = int(np.argmax(pilot.mixed_P))
        rest = yield RolloutRequest((ids[mixed],), np.array([spec.budget - 2 * len(ids)]), np.array([0.9]))
        return Batch(rest)


def step_on(outcomes: Outcomes) -> StepReplay:
    rollouts = shuffled_rollouts(outcomes, seed=0)
    return StepReplay(WithoutReplacementSampler(rollouts), 0, lambda k: tuple(rollouts.prompt_ids[:k]))


def test_a_rule_of_two_rounds_draws_the_rest_of_the_same_group() -> None:
    recorded = pool_of([1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    replayed = ReplayedRule("pilot", PilotThenRest()).try_step(step_on(recorded), groups=2, budget=9)  # type: ignore[arg-type]
    assert replayed is not None
    assert replayed.rounds == 2
    assert replayed.requested_P.sum() == 9
    drawn = int(np.argmax(replayed.requested_P))
    assert replayed.requested_P[drawn] == 7
    # Nothing twice: 4 or 5 were recorded, and all of them came, each once.
    assert replayed.drawn.counts_P[drawn] == replayed.available.counts_P[drawn]
    got = replayed.drawn.rewards_PG[replayed.drawn.group_PG == drawn]
    assert sorted(got) == sorted(recorded.rewards_PG[recorded.group_PG == drawn])
    np.testing.assert_array_equal(replayed.success_rates_P, [0.5, 0.5])  # the forecast from before it looked
    values = measure_step(replayed).values
    assert isnan(values["value_expected"])  # counts that were decided on the draws have no mean over them
    assert isnan(values["brier_mixed"])
    assert values["trained"] == replayed.drawn.counts_P[drawn] - 2


class Insatiable:
    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(1)
        while True:
            yield RolloutRequest(ids, np.array([1]))


class Stranger:
    def step(self, spec: StepSpec) -> StepGenerator:
        outcomes = yield RolloutRequest(("unknown",), np.array([1]))
        return Batch(outcomes)


@pytest.mark.parametrize(("strategy", "reason"), [(Insatiable(), "1,000 times"), (Stranger(), "'unknown'")])
def test_a_rule_that_the_record_cannot_supply_stops_and_says_why(strategy: object, reason: str) -> None:
    replayed = ReplayedRule("x", strategy)  # type: ignore[arg-type]
    assert replayed.try_step(step_on(pool_of([1.0, 0.0])), 1, 2) is None
    assert replayed.stopped_reason is not None
    assert replayed.stopped_reason.startswith("stopped at step 0: ")
    assert reason in replayed.stopped_reason
