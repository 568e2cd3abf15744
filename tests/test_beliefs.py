from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.files import BeliefFileError
from knapsack_rl.outcomes import Outcomes
from strategies import outcome_streams

IDS = tuple(f"q{i}" for i in range(6))
NAN = math.nan
half_lives = st.sampled_from([1.0, 7.5, 64.0, 1e6])


def observed(beliefs: Beliefs, *outcomes: Outcomes) -> Beliefs:
    for some in outcomes:
        beliefs.observe(some)
    return beliefs


def assert_same(one: Forecast, other: Forecast, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(one.success_rates_P, other.success_rates_P, rtol=rtol)
    np.testing.assert_allclose(one.pseudo_count_P, other.pseudo_count_P, rtol=rtol)
    np.testing.assert_array_equal(one.seen_P, other.seen_P)


def by_prompt(outcomes: Outcomes) -> dict[str, list[float]]:
    """Each prompt's answers of a step, in order, groups that share an id together; prompts without answers left out."""
    answers: dict[str, list[float]] = defaultdict(list)
    for group, reward in zip(outcomes.group_PG, outcomes.rewards_PG, strict=True):
        if not math.isnan(reward):
            answers[outcomes.prompt_ids[group]].append(float(reward >= outcomes.success_threshold))
    return answers


# Beta beliefs.


@settings(max_examples=150)
@given(outcome_streams(), half_lives, st.integers(0, 300))
def test_beta_beliefs_are_decayed_sums_over_all_rewards(stream: list[Outcomes], half_life: float, now: int) -> None:
    """Compared with a list of every reward and its step; steps arrive in any order."""
    found = observed(BetaBeliefs(half_life), *stream).forecast(IDS, now)
    for i, prompt in enumerate(IDS):
        seen = [(outcomes.step, reward) for outcomes in stream for reward in by_prompt(outcomes).get(prompt, [])]
        assert found.seen_P[i] == bool(seen)
        today = max([now, *(step for step, _ in seen)])
        weights = [2 ** (-(today - step) / half_life) for step, _ in seen]
        successes = math.fsum(w * reward for w, (_, reward) in zip(weights, seen, strict=True))
        assert found.pseudo_count_P[i] == pytest.approx(1 + math.fsum(weights), rel=1e-5)
        assert found.success_rates_P[i] == pytest.approx((0.5 + successes) / (1 + math.fsum(weights)), rel=1e-5)


@given(outcome_streams(), st.randoms(use_true_random=False), half_lives)
def test_late_outcomes_leave_the_same_belief(stream: list[Outcomes], random: object, half_life: float) -> None:
    shuffled = list(stream)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (observed(BetaBeliefs(half_life), *order).forecast(IDS, 250) for order in (stream, shuffled))
    assert_same(one, other, rtol=1e-5)


@given(st.lists(st.sampled_from([0.0, 1.0, NAN]), max_size=30), st.integers(0, 30))
def test_a_group_observed_in_two_parts_gives_the_same_belief(rewards: list[float], cut: int) -> None:
    whole = observed(BetaBeliefs(), Outcomes.of_groups(5, [("q0", rewards)]))
    late = observed(
        BetaBeliefs(),
        Outcomes.of_groups(5, [("q0", rewards[cut:])]),
        Outcomes.of_groups(5, [("q0", rewards[:cut])]),
    )
    twice = observed(BetaBeliefs(), Outcomes.of_groups(5, [("q0", rewards[:cut]), ("q0", rewards[cut:])]))
    assert_same(whole.forecast(IDS, 9), late.forecast(IDS, 9), rtol=1e-6)
    assert_same(whole.forecast(IDS, 9), twice.forecast(IDS, 9), rtol=1e-6)


def test_evidence_halves_every_half_life() -> None:
    beliefs = observed(BetaBeliefs(half_life=10), Outcomes.of_groups(0, [("q0", [1.0] * 6 + [0.0] * 2)]))
    for step, evidence in ((0, 8.0), (10, 4.0), (20, 2.0), (1000, 0.0)):
        forecast = beliefs.forecast(("q0",), step)
        assert forecast.pseudo_count_P[0] - 1 == pytest.approx(evidence)
        assert forecast.alpha_P[0] == pytest.approx(0.5 + 0.75 * evidence)
        assert forecast.beta_P[0] == pytest.approx(0.5 + 0.25 * evidence)


@pytest.mark.parametrize("beliefs", [BetaBeliefs(), WindowBeliefs()], ids=["beta", "window"])
def test_rows_without_an_answer_are_not_failures(beliefs: Beliefs) -> None:
    before = beliefs.forecast(IDS, 0)
    observed(beliefs, Outcomes.of_groups(0, [("q0", [NAN] * 9), ("q1", [])]))
    assert_same(beliefs.forecast(IDS, 0), before)
    assert not beliefs.forecast(IDS, 0).seen_P.any()
    observed(beliefs, Outcomes.of_groups(0, [("q0", [1.0, NAN] * 8)]))
    assert beliefs.forecast(("q0",), 0).success_rates_P[0] > 0.9


def test_unseen_prompts_have_the_prior() -> None:
    forecast = BetaBeliefs(prior=(1.0, 3.0)).forecast(IDS, 7)
    assert not forecast.seen_P.any()
    assert forecast.success_rates_P.tolist() == [0.25] * 6
    assert forecast.pseudo_count_P.tolist() == [4.0] * 6
    assert np.isnan(forecast.tokens_P).all()


def test_a_forecast_changes_nothing() -> None:
    beliefs = BetaBeliefs()
    observed(beliefs, Outcomes.of_groups(0, [("q0", [1.0, 0.0])]))
    first = beliefs.forecast(IDS, 3)
    beliefs.forecast(("unknown",), 99)
    assert_same(beliefs.forecast(IDS, 3), first)
    assert len(beliefs.table) == 1


@pytest.mark.parametrize(
    "arguments", [{"half_life": 0.0}, {"half_life": NAN}, {"prior": (0.5, 0.0)}, {"prior": (math.inf, 1)}]
)
def test_impossible_settings_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is .*: it must be (positive and finite|from)"):
        BetaBeliefs(**arguments)  # type: ignore[arg-type]


def test_beliefs_stay_finite_after_many_observations() -> None:
    beliefs = BetaBeliefs(half_life=1e6)
    for step in range(200):
        beliefs.observe(Outcomes.of_groups(step * 1000, [("q0", [1.0] * 1000)]))
    forecast = beliefs.forecast(("q0",), 200_000)
    assert 0.999 < forecast.success_rates_P[0] < 1
    assert (forecast.alpha_P > 0).all()
    assert (forecast.beta_P > 0).all()


# The paper's estimator.


class AuthorsEstimator:
    """The authors' estimator in their form: a list of all rewards of each prompt."""

    def __init__(self, window: int, minimum: int) -> None:
        self.window, self.minimum = window, minimum
        self.visits: dict[str, list[list[float]]] = defaultdict(list)

    def observe(self, outcomes: Outcomes) -> None:
        for prompt, answers in by_prompt(outcomes).items():
            self.visits[prompt].append(answers)

    def estimate(self, prompt: str) -> float | None:
        visits = self.visits[prompt]
        rewards = [reward for visit in visits for reward in visit]
        if len(rewards) < max(self.minimum, 1):
            return None
        latest = visits[-1] if len(visits[-1]) >= self.window else rewards[-self.window :]
        return sum(latest) / len(latest)


@settings(max_examples=150)
@given(outcome_streams(), st.sampled_from([(16, 8), (1, 1), (7, 0), (64, 20)]))
def test_window_beliefs_are_the_authors_estimator(stream: list[Outcomes], setting: tuple[int, int]) -> None:
    beliefs, authors = WindowBeliefs(*setting), AuthorsEstimator(*setting)
    for outcomes in stream:
        beliefs.observe(outcomes)
        authors.observe(outcomes)
        found = beliefs.forecast(IDS, outcomes.step)
        for i, prompt in enumerate(IDS):
            estimate = authors.estimate(prompt)
            assert found.seen_P[i] == (estimate is not None)
            assert found.success_rates_P[i] == pytest.approx(0.5 if estimate is None else estimate, abs=1e-7)
            assert found.pseudo_count_P[i] == sum(map(len, authors.visits[prompt]))


def test_window_beliefs_step_by_step() -> None:
    beliefs = WindowBeliefs()

    def rate(rewards: list[float]) -> float:
        return float(observed(beliefs, Outcomes.of_groups(0, [("a", rewards)])).forecast(("a",), 0).success_rates_P[0])

    assert rate([1.0] * 7) == 0.5  # fewer than 8: unseen
    assert rate([0.0]) == 7 / 8
    assert rate([0.0] * 8) == 7 / 16
    assert rate([0.0] * 7) == 0.0  # the successes are outside the window
    assert rate([1.0] * 4) == 4 / 16
    assert rate([1.0] * 5 + [0.0] * 15) == 5 / 20  # a group of 16 or more counts alone
    assert rate([0.0]) == 0.0  # the last 16 rewards again


@pytest.mark.parametrize("visit", [63, 64, 65, 200])
def test_the_widest_window(visit: int) -> None:
    beliefs, authors = WindowBeliefs(64), AuthorsEstimator(64, 8)
    rng = np.random.default_rng(visit)
    for size in (visit, 1, visit, 5):
        outcomes = Outcomes.of_groups(0, [("a", rng.integers(0, 2, size).astype(float).tolist())])
        beliefs.observe(outcomes)
        authors.observe(outcomes)
        assert beliefs.forecast(("a",), 0).success_rates_P[0] == pytest.approx(authors.estimate("a"), abs=1e-7)


@pytest.mark.parametrize("window", [0, 65])
def test_windows_outside_the_range_are_refused(window: int) -> None:
    with pytest.raises(ValueError, match=f"window is {window}"):
        WindowBeliefs(window)


# Both.


@pytest.mark.parametrize("kind", [BetaBeliefs, WindowBeliefs])
def test_lengths_are_averaged_with_the_stored_one(kind: type[BetaBeliefs | WindowBeliefs]) -> None:
    beliefs = kind()

    def length(step: int, tokens: list[int] | None) -> float:
        size = 2 if tokens is None else len(tokens)
        known = None if tokens is None else np.array(tokens)
        beliefs.observe(Outcomes(step, ("a",), np.array([size]), np.ones(size), known))
        return float(beliefs.forecast(("a",), step).tokens_P[0])

    assert math.isnan(length(0, None))
    assert length(1, [100, 300]) == 200
    assert length(2, [400]) == 300
    assert length(3, None) == 300


@pytest.mark.parametrize("make", [BetaBeliefs, WindowBeliefs])
@given(before=outcome_streams(), after=outcome_streams())
@settings(max_examples=30, deadline=None)
def test_saved_beliefs_continue_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    make: type[BetaBeliefs | WindowBeliefs],
    before: list[Outcomes],
    after: list[Outcomes],
) -> None:
    file = tmp_path_factory.getbasetemp() / f"{make.__name__}.npz"
    straight = observed(make(), *before)
    straight.save(file)
    resumed = observed(make(), Outcomes.of_groups(3, [("other", [1.0] * 9)]))
    resumed.load(file)
    assert_same(
        observed(straight, *after).forecast((*IDS, "other"), 300),
        observed(resumed, *after).forecast((*IDS, "other"), 300),
    )


def test_saved_beliefs_are_usable_after_the_data_set_changed(tmp_path: Path) -> None:
    file = tmp_path / "beliefs.npz"
    observed(BetaBeliefs(), Outcomes.of_groups(0, [("kept", [1.0] * 4), ("removed", [0.0] * 4)])).save(file)
    beliefs = BetaBeliefs()
    beliefs.load(file)
    observed(beliefs, Outcomes.of_groups(1, [("added", [1.0, 0.0])]))
    forecast = beliefs.forecast(("added", "kept", "unknown"), 1)
    assert forecast.seen_P.tolist() == [True, True, False]
    assert forecast.success_rates_P[1] > 0.8


def test_beliefs_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "beliefs.npz"
    observed(WindowBeliefs(), Outcomes.of_groups(0, [("a", [1.0] * 9)])).save(file)
    beliefs = observed(BetaBeliefs(), Outcomes.of_groups(0, [("b", [1.0] * 9)]))
    before = beliefs.forecast(("a", "b"), 0)
    with pytest.raises(BeliefFileError, match=r"beliefs\.npz: it holds kind 'window', not 'beta'"):
        beliefs.load(file)
    assert_same(beliefs.forecast(("a", "b"), 0), before)
    with pytest.raises(BeliefFileError, match=r"beliefs\.npz: it holds window 16, not 8"):
        WindowBeliefs(window=8).load(file)
