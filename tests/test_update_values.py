"""Values of an update against groups that are really drawn, and against sums written out."""

from __future__ import annotations

import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.simulator import LearnerSettings
from knapsack_arena.simulator.learner import policy_gradient
from knapsack_arena.strategies import Batch
from knapsack_arena.update_values.rule import UpdateValue, concave_envelope, noise_price, update_size_rule
from knapsack_arena.update_values.values import (
    GAINS,
    Gain,
    Update,
    Weighting,
    expected_values,
    update_powers,
    update_sizes,
    update_squares,
)
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rules import oracle_rule
from knapsack_rl.values import expected_knapsack_marginals, expected_knapsack_value, knapsack_value
from strategies import evidence, rates

HIGH, DRAWS, TRL_EPSILON = 24, 100_000, 1e-4
KNOWN = np.array([np.inf])
GROUPS = [(2, 0.5), (3, 0.2), (8, 0.5), (8, 0.05), (24, 0.9)]


def drawn(n: int, p: float, scaled: bool) -> tuple[FloatArray, FloatArray]:
    """Groups of n rollouts: TRL's advantages, and for each rollout d log pi / dz of its outcome; ``[DRAWS, n]``."""
    rewards = (np.random.default_rng(n).random((DRAWS, n)) < p).astype(np.float64)
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    if scaled:
        advantages /= rewards.std(axis=1, ddof=1, keepdims=True) + TRL_EPSILON
    return advantages, rewards - p


def assert_mean(samples: FloatArray, expected: float) -> None:
    """The mean agrees within five standard errors, and what TRL's epsilon takes off (twice, off deviations of .2)."""
    error = samples.std() / math.sqrt(samples.size)
    assert abs(samples.mean() - expected) < 5 * error + 2 * TRL_EPSILON / 0.2 * expected
    assert 5 * error < 0.1 * expected, "too few draws to tell"


@pytest.mark.parametrize(("n", "p"), GROUPS)
@pytest.mark.parametrize("update", ["scaled", "unscaled"])
def test_signal_noise_and_squares_are_those_of_drawn_groups(n: int, p: float, update: Update) -> None:
    advantages, scores = drawn(n, p, update == "scaled")
    pushes = (advantages * scores).sum(axis=1)
    for weighting, factor in (("rollout", 1.0), ("prompt", 1 / n)):
        for table, samples in (
            (update_sizes, factor * pushes),
            (update_squares, (factor * pushes) ** 2),
            (update_powers, ((factor * advantages) ** 2).sum(axis=1)),
        ):
            expected = expected_values(np.array([p]), KNOWN, table(HIGH, update, weighting))[0, n]
            assert_mean(samples, expected)


@pytest.mark.parametrize(("n", "p"), GROUPS)
def test_closed_forms(n: int, p: float) -> None:
    q, mixed = 1 - p, 1 - p**n - (1 - p) ** n
    of = {
        (update_sizes, "unscaled"): (n - 1) * p * q,
        (update_squares, "scaled"): (n - 1) ** 2 * p * q,
        (update_powers, "scaled"): (n - 1) * mixed,
        (update_powers, "unscaled"): (n - 1) * p * q,
        (update_sizes, "mixed"): n * mixed,
    }
    for (table, update), expected in of.items():
        found = expected_values(np.array([p]), KNOWN, table(HIGH, update, "rollout"))[0, n]
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("scaled", [True, False])
def test_sizes_are_the_gradient_of_the_simulated_learner(weighting: Weighting, scaled: bool) -> None:
    """Every group of 6 and of 3, by their successes: up to the constant of the batch, it is the very same push."""
    groups = [(6, k) for k in range(7)] + [(3, k) for k in range(4)]
    counts = np.array([n for n, _ in groups])
    rewards = np.concatenate([[1.0] * k + [0.0] * (n - k) for n, k in groups])
    outcomes = Outcomes(0, tuple(map(str, range(len(groups)))), counts, rewards)
    settings = LearnerSettings(weighting=weighting, scale_advantages=scaled)
    gradient, power = policy_gradient(Batch(outcomes), np.full(len(groups), 0.3), settings)
    constant = counts.sum() if weighting == "rollout" else len(groups)
    update: Update = "scaled" if scaled else "unscaled"
    at = tuple(np.array(groups).T)
    np.testing.assert_allclose(gradient * constant, update_sizes(6, update, weighting)[at], rtol=1e-5, atol=1e-12)
    assert power * constant**2 == pytest.approx(update_powers(6, update, weighting)[at].sum(), rel=1e-5)


@given(evidence, evidence, st.sampled_from(sorted(GAINS)), st.integers(0, HIGH))
def test_expectations_under_beliefs_are_the_sums_written_out(a: float, b: float, gain: Gain, n: int) -> None:
    x, y = GAINS[gain]

    def log_beta(one: float, other: float) -> float:
        return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)

    table = update_sizes(HIGH, "scaled", "rollout")
    terms = [
        math.comb(n, k) * math.exp(log_beta(a + x + k, b + y + n - k) - log_beta(a, b)) * table[n, k]
        for k in range(n + 1)
    ]
    found = expected_values(np.array([a / (a + b)]), np.array([a + b]), table, gain)[0, n]
    assert found == pytest.approx(math.fsum(terms), rel=1e-6, abs=1e-12)


@given(evidence, evidence)
def test_the_paper_s_value_is_one_of_the_family(a: float, b: float) -> None:
    table = update_sizes(HIGH, "mixed", "prompt")
    found = expected_values(np.array([a / (a + b)]), np.array([a + b]), table, "paper")
    np.testing.assert_allclose(
        found, expected_knapsack_value(np.array([a]), np.array([b]), HIGH), rtol=1e-7, atol=1e-13
    )


@given(rates)
def test_a_belief_of_infinite_strength_is_a_known_rate(p: float) -> None:
    found = expected_values(np.array([p]), KNOWN, update_sizes(HIGH, "mixed", "prompt"), "paper")
    np.testing.assert_allclose(found, knapsack_value(np.array([p]), HIGH), rtol=1e-7, atol=1e-10)


def test_the_longest_groups_keep_their_accuracy() -> None:
    """Group of 128 at p = 1/2, where sqrt(k/n (1 - k/n)) hardly scatters: close to 1/2, a little less."""
    table = update_sizes(128, "scaled", "prompt")
    found = expected_values(np.array([0.5, 0.5, 1e-6]), np.array([np.inf, 1e9, np.inf]), table)[:, 128]
    exact = sum(math.comb(128, k) / 2**128 * math.sqrt(127 / 128 * k / 128 * (1 - k / 128)) for k in range(129))
    np.testing.assert_allclose(found[:2], exact, rtol=1e-6)
    assert found[2] == pytest.approx(1e-6 * 127 / math.sqrt(128), rel=1e-3)  # one success, or none


values_of_all_kinds = st.builds(
    UpdateValue,
    st.sampled_from(sorted(GAINS)),
    st.sampled_from(get_args(Update)),
    st.sampled_from(get_args(Weighting)),
    st.sampled_from([0.0, 0.1, 1.0]),
)


@given(
    st.lists(st.tuples(evidence, evidence), min_size=1, max_size=5),
    values_of_all_kinds,
    st.sampled_from([0, 2, 3]),
    st.sampled_from([0.0, 0.5]),
)
def test_marginals_fall_whatever_the_value(
    pairs: list[tuple[float, float]], value: UpdateValue, low: int, price: float
) -> None:
    a, b = np.array(pairs).T
    marginals = value.marginals(a / (a + b), a + b, low, HIGH, price)(np.arange(a.size), HIGH)
    assert (np.diff(marginals[:, low:], axis=1) <= 0).all()


@given(
    st.lists(st.tuples(evidence, evidence), min_size=1, max_size=5),
    st.sampled_from(sorted(GAINS)),
    st.sampled_from(get_args(Update)),
    st.sampled_from([0, 2]),
)
def test_where_prompts_weigh_alike_values_are_concave_but_for_their_first_groups(
    pairs: list[tuple[float, float]], gain: Gain, update: Update, low: int
) -> None:
    """That is what lets the solver ask for a few columns only."""
    a, b = np.array(pairs).T
    value = UpdateValue(gain, update, "prompt")
    values = value.signals(a / (a + b), a + b, 64)
    whole = concave_envelope(values, low)
    tolerance = 1e-7 * np.abs(whole).max()
    found = value.marginals(a / (a + b), a + b, low, 64)
    for stop in (2, 3, 9, 64):
        np.testing.assert_allclose(found(np.arange(a.size), stop), whole[:, :stop], rtol=0, atol=tolerance)
    np.testing.assert_allclose(whole[:, 3:], np.diff(values, axis=1)[:, 3:], rtol=0, atol=tolerance)


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=12), st.sampled_from([0, 2]))
def test_the_envelope_is_the_least_concave_value_above(steps: list[int], low: int) -> None:
    values = np.concatenate([[0.0], np.cumsum(steps)])[None]
    high = values.shape[1] - 1
    points = [n for n in range(low, high + 1) if n != 1]
    envelope = values[0, low] + np.concatenate([[0.0], np.cumsum(concave_envelope(values, low)[0, low:])])
    for n in points:
        # The least concave function above: the highest chord over n.
        chords = [
            values[0, i] + (values[0, j] - values[0, i]) * (n - i) / (j - i) if j > i else values[0, i]
            for i in points
            for j in points
            if i <= n <= j
        ]
        assert envelope[n - low] == pytest.approx(max(chords), abs=1e-7)


def best_by_trying(values_P_N: FloatArray, budget: int, low: int, high: int) -> float:
    """The greatest total value of any counts."""
    choices = [n for n in range(low, high + 1) if n != 1]
    rows = np.arange(values_P_N.shape[0])
    plans = [plan for plan in product(choices, repeat=rows.size) if sum(plan) == budget]
    return max(float(values_P_N[rows, list(plan)].sum()) for plan in plans)


@pytest.mark.parametrize("low", [0, 2])
@pytest.mark.parametrize("update", get_args(Update))
@pytest.mark.parametrize("seed", range(3))
def test_plans_are_the_best_there_are_but_for_one_group(low: int, update: Update, seed: int) -> None:
    p = np.random.default_rng(seed).beta(0.7, 0.7, 4)
    known, high, budget = np.full(4, np.inf), 8, 15
    value = UpdateValue("shared", update, "prompt")
    counts = solve(value.marginals(p, known, low, high), budget, np.full(4, low), np.full(4, high)).counts_P
    values = value.signals(p, known, high)
    assert counts.sum() == budget
    best = best_by_trying(values, budget, low, high)
    found = float(values[np.arange(4), counts].sum())
    if low == 2 or update != "scaled":
        assert found == pytest.approx(best, rel=1e-6)
    else:  # a pair that was sold as two thirds of a triple
        gap = (2 / 3 * values[:, 3] - values[:, 2]).max()
        assert best - gap - 1e-9 <= found <= best + 1e-9


@pytest.mark.parametrize("own_noise", [0.3, 1.0])
def test_the_price_of_noise_makes_the_direction_best(own_noise: float) -> None:
    """S / sqrt(V) at the price is within a hundredth of the best of all plans, and better than without the price."""
    p, high, budget, low = np.array([0.5, 0.45, 0.3, 0.15, 0.04]), 12, 22, 2
    known = np.full(5, np.inf)
    value = UpdateValue("shared", "scaled", "rollout", own_noise)
    signals, noises, rows = value.signals(p, known, high), value.noises(p, known, high), np.arange(5)

    def quality(counts: FloatArray) -> float:
        return float(signals[rows, counts].sum() / math.sqrt(noises[rows, counts].sum()))

    def planned(price: float) -> float:
        marginals = value.marginals(p, known, low, high, price)
        return quality(solve(marginals, budget, np.full(5, low), np.full(5, high)).counts_P)

    plans = [np.array(plan) for plan in product(range(low, high + 1), repeat=5) if sum(plan) == budget]
    best = max(map(quality, plans))
    price, largest = noise_price(value, p, known, budget, low, high)
    assert planned(price) > 0.99 * best
    assert largest < high
    assert planned(0.0) < 0.99 * best


def test_signal_alone_under_rollout_weighting_goes_to_one_prompt() -> None:
    """What the page warns of: the signal of a group grows faster than its size."""
    rule = update_size_rule("shared", "scaled", "rollout")
    allocator = KnapsackAllocator(StaticBeliefs(lambda ids: np.array([0.1, 0.5, 0.9])), rule, 2, 16)
    assert allocator.plan(["a", "b", "c"], 20, 0).counts_P.tolist() == [2, 16, 2]
    tempered = KnapsackAllocator(
        StaticBeliefs(lambda ids: np.array([0.1, 0.5, 0.9])),
        update_size_rule("shared", "scaled", "rollout", 1.0),
        2,
        16,
    )
    counts = tempered.plan(["a", "b", "c"], 20, 0).counts_P
    assert counts[1] < 16
    assert counts.sum() == 20


def test_rules_plan_by_any_beliefs() -> None:
    beliefs = BetaBeliefs()
    beliefs.observe(Outcomes(0, ("easy", "even"), np.array([8, 8]), np.array([1.0] * 8 + [1.0, 0.0] * 4)))
    for weighting, own_noise in product(get_args(Weighting), (None, 0.1)):
        rule = update_size_rule("own", "unscaled", weighting, own_noise)
        plan = KnapsackAllocator(beliefs, rule, 0, 16).plan(["easy", "even", "new"], 12, 1)
        counts = dict(zip(plan.prompt_ids, plan.counts_P.tolist(), strict=True))
        assert sum(counts.values()) == 12
        assert counts["even"] > counts["easy"]


def test_the_paper_s_rule_among_the_rules_plans_the_paper_s_plan() -> None:
    p = np.random.default_rng(5).beta(0.7, 0.7, 40)
    forecast = Forecast(p, np.full(40, np.inf), np.ones(40, dtype=bool), np.full(40, np.nan))
    ours, theirs = (rule(forecast, 320, 2, 64) for rule in (update_size_rule("paper", "mixed", "prompt"), oracle_rule))
    np.testing.assert_array_equal(
        solve(ours.marginals, 320, ours.low_P, ours.high_P).counts_P,
        solve(theirs.marginals, 320, theirs.low_P, theirs.high_P).counts_P,
    )
    a, b = np.array([2.0, 0.5]), np.array([1.0, 7.5])
    table = UpdateValue("paper", "mixed", "prompt").marginals(a / (a + b), a + b, 2, 32)(np.arange(2), 32)
    np.testing.assert_allclose(table[:, 2:], expected_knapsack_marginals(a, b, 32)[:, 2:], rtol=1e-7)


def test_where_each_value_is_greatest() -> None:
    """A third for the paper's, a half for all that GRPO's update makes of it, and the same by the gain p (1-p)."""
    p = np.linspace(0, 1, 3001)
    known = np.full(p.size, np.inf)

    def best(gain: Gain, update: Update, n: int) -> float:
        return float(p[expected_values(p, known, update_sizes(n, update, "prompt"), gain)[:, n].argmax()])

    assert best("paper", "mixed", 128) == pytest.approx(1 / 3, abs=0.01)
    assert best("own", "mixed", 128) == pytest.approx(1 / 2, abs=0.01)
    for update in ("scaled", "unscaled"):
        assert best("own", update, 8) == pytest.approx(1 / 2, abs=0.01)
        assert best("shared", update, 8) == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gain": "speed"}, "no gain 'speed'"),
        ({"update": "clipped"}, "no update 'clipped'"),
        ({"weighting": "token"}, "no weighting 'token'"),
    ],
)
def test_unknown_words_are_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpdateValue(**arguments).signals(np.array([0.5]), KNOWN, 8)  # type: ignore[arg-type]


def test_beliefs_that_make_no_sense_are_named() -> None:
    table = update_sizes(4, "scaled", "prompt")
    with pytest.raises(ValueError, match=r"success_rates_P\[1\] is 1.5"):
        expected_values(np.array([0.5, 1.5]), np.ones(2), table)
    with pytest.raises(ValueError, match=r"pseudo_count_P\[0\] is 0.0"):
        expected_values(np.array([0.5]), np.zeros(1), table)
