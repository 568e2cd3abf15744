"""Calibrated beliefs: forecasts from own counts, the last group and features, combined by an online regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knapsack_rl import BeliefFileError, BetaBeliefs, Outcomes
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Beliefs
from knapsack_rl.beliefs.online_logistic import logistic
from knapsack_rl.notation import FloatArray, PromptFeatures

PROMPTS = 200
IDS = [f"p{i}" for i in range(PROMPTS)]
FEATURES = np.random.default_rng(5).standard_normal((PROMPTS, 6))


Features = Callable[[Sequence[str]], PromptFeatures]


def plain(features_P_F: FloatArray) -> PromptFeatures:
    """Features without confidence."""
    return PromptFeatures(features_P_F, np.zeros((len(features_P_F), 0)))


def gaussian_features(prompt_ids: Sequence[str]) -> PromptFeatures:
    return plain(FEATURES[[int(prompt_id[1:]) for prompt_id in prompt_ids]])


def with_features_of(outcomes: Outcomes, features: Features | None) -> Outcomes:
    """The outcomes, with the features that their plan was made with."""
    return outcomes if features is None else dataclasses.replace(outcomes, features=features(outcomes.prompt_ids))


def outcomes_of(rates: FloatArray, rows: np.ndarray, step: int, rng: np.random.Generator, n: int = 6) -> Outcomes:
    return Outcomes.of_groups(step, [(IDS[i], (rng.random(n) < rates[i]).astype(float).tolist()) for i in rows])


def squared_error(
    beliefs: Beliefs, rates_of: list[FloatArray], features: Features | None = None, per_step: int = 20, n: int = 6
) -> float:
    """Mean squared error of the forecasts in the second half of a run over random prompts."""
    rng = np.random.default_rng(0)
    errors = []
    for step, rates in enumerate(rates_of):
        rows = rng.choice(PROMPTS, per_step, replace=False)
        ids = [IDS[i] for i in rows]
        forecast = beliefs.forecast(ids, step, None if features is None else features(ids))
        if step >= len(rates_of) // 2:
            errors.append(np.mean((forecast.success_rates_P - rates[rows]) ** 2))
        beliefs.observe(with_features_of(outcomes_of(rates, rows, step, rng, n), features))
    return float(np.mean(errors))


def test_informative_features_are_used() -> None:
    rates = logistic(2.5 * FEATURES[:, 0] - 1.5 * FEATURES[:, 1])
    with_features = squared_error(CalibratedBeliefs(1000), [rates] * 40, gaussian_features)
    without = squared_error(CalibratedBeliefs(1000), [rates] * 40)
    assert with_features < 0.5 * without


def test_uninformative_features_do_little_harm() -> None:
    rates = np.where(np.random.default_rng(1).random(PROMPTS) < 0.5, 0.05, 0.9)
    with_features = squared_error(CalibratedBeliefs(1000), [rates] * 60, gaussian_features)
    without = squared_error(CalibratedBeliefs(1000), [rates] * 60)
    assert with_features < 1.2 * without


CONFIDENT = np.random.default_rng(10).random(PROMPTS) < 0.5


def confidence_only(prompt_ids: Sequence[str]) -> PromptFeatures:
    """Features that hold the confidence of the policy only."""
    confident_P = CONFIDENT[[int(prompt_id[1:]) for prompt_id in prompt_ids]]
    return PromptFeatures(np.ones((len(prompt_ids), 1)), np.where(confident_P, 2.0, -1.0)[:, None])


def test_confidence_has_coefficients_per_outcome_of_the_last_group() -> None:
    """Prompts of low confidence have a rate of 0.5, of high confidence 0.98 or 0.02; the last group shows which.

    Counts decay quickly and groups have two rollouts, so that own counts give little information.
    """
    knows = np.random.default_rng(11).random(PROMPTS) < 0.5
    rates = np.where(CONFIDENT, np.where(knows, 0.98, 0.02), 0.5)
    with_it = squared_error(CalibratedBeliefs(2), [rates] * 60, confidence_only, n=2)
    as_feature = squared_error(
        CalibratedBeliefs(2), [rates] * 60, lambda ids: plain(confidence_only(ids).confidence_P_C), n=2
    )
    assert with_it < 0.6 * as_feature


def test_uninformative_confidence_does_little_harm() -> None:
    rates = np.where(np.random.default_rng(1).random(PROMPTS) < 0.5, 0.05, 0.9)
    with_it = squared_error(CalibratedBeliefs(1000), [rates] * 60, confidence_only)
    assert with_it < 1.2 * squared_error(CalibratedBeliefs(1000), [rates] * 60)


def test_a_common_trend_of_success_rates_is_followed() -> None:
    """All rates rise while most prompts are not observed: the prompts' own counts lag behind."""
    at_first = np.random.default_rng(2).normal(-2, 1, PROMPTS)
    rising = [logistic(at_first + 0.06 * step) for step in range(60)]
    assert squared_error(CalibratedBeliefs(30), rising) < 0.8 * squared_error(BetaBeliefs(30), rising)


def test_the_pseudo_count_fits_the_variance_of_true_rates() -> None:
    """The squared error of the forecast, divided by the variance of the Beta belief, is near 1 on average."""
    rng = np.random.default_rng(4)
    rates = logistic(1.5 * FEATURES[:, 0] + rng.normal(0, 1, PROMPTS))
    beliefs = CalibratedBeliefs(1000)
    ratios = []
    for step in range(120):
        rows = rng.choice(PROMPTS, 20, replace=False)
        ids = [IDS[i] for i in rows]
        forecast = beliefs.forecast(ids, step, gaussian_features(ids))
        mean, pseudo_count = forecast.success_rates_P, forecast.pseudo_count_P
        if step >= 60:
            ratios.append(np.mean((rates[rows] - mean) ** 2) / np.mean(mean * (1 - mean) / (pseudo_count + 1)))
        beliefs.observe(with_features_of(outcomes_of(rates, rows, step, rng), gaussian_features))
    assert 0.4 < np.mean(ratios) < 1.6


def test_unseen_prompts_are_forecast_by_their_features() -> None:
    rng = np.random.default_rng(6)
    rates = logistic(3 * FEATURES[:, 0])
    beliefs = CalibratedBeliefs(1000)
    for step in range(60):
        beliefs.observe(
            with_features_of(outcomes_of(rates, rng.choice(100, 20, replace=False), step, rng), gaussian_features)
        )
    forecast = beliefs.forecast(IDS[100:], 60, gaussian_features(IDS[100:]))
    assert not forecast.seen_P.any()
    assert np.corrcoef(forecast.success_rates_P, rates[100:])[0, 1] > 0.9


@pytest.mark.parametrize("features", [None, gaussian_features, confidence_only])
def test_a_resumed_run_forecasts_as_one_that_never_stopped(tmp_path: Path, features: Features | None) -> None:
    rates, rng = np.full(PROMPTS, 0.3), np.random.default_rng(7)
    beliefs = CalibratedBeliefs(20)
    for step in range(6):
        beliefs.observe(
            with_features_of(outcomes_of(rates, rng.choice(PROMPTS, 30, replace=False), step, rng), features)
        )
    beliefs.save(tmp_path / "beliefs.npz")
    resumed = CalibratedBeliefs(20)
    resumed.load(tmp_path / "beliefs.npz")
    given = None if features is None else features(IDS)
    for step in range(6, 10):
        first, second = beliefs.forecast(IDS, step, given), resumed.forecast(IDS, step, given)
        np.testing.assert_array_equal(first.success_rates_P, second.success_rates_P)
        np.testing.assert_array_equal(first.pseudo_count_P, second.pseudo_count_P)
        outcomes = with_features_of(outcomes_of(rates, rng.choice(PROMPTS, 30, replace=False), step, rng), features)
        beliefs.observe(outcomes)
        resumed.observe(outcomes)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "without concentration": lambda state: state.pop("concentration"),
    "without precision": lambda state: state["feature_model"].pop("precision"),
    "concentration is a number": lambda state: state.update(concentration=np.array(1.0)),
    "features too long": lambda state: state["feature_model"].update(weights=np.zeros(9)),
    "not finite": lambda state: state["combiner"].update(weights=np.full(7, np.nan)),
    "a column too short": lambda state: state["prompts"].update(last=np.zeros(0, dtype=np.uint8)),
    "without prompts": lambda state: state.pop("prompts"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_state_is_refused_and_nothing_changes(damage: Callable[[dict[str, Any]], object]) -> None:
    saved, beliefs = CalibratedBeliefs(), CalibratedBeliefs()
    saved.observe(Outcomes.of_groups(0, [("a", [1.0] * 8)]))
    beliefs.observe(Outcomes.of_groups(0, [("b", [0.0, 1.0] * 4)]))
    before, state = beliefs.forecast(["a", "b"], 1), saved.state_dict()
    damage(state)
    with pytest.raises(BeliefFileError):
        beliefs.load_state_dict(state)
    after = beliefs.forecast(["a", "b"], 1)
    np.testing.assert_array_equal(after.success_rates_P, before.success_rates_P)
    np.testing.assert_array_equal(after.seen_P, before.seen_P)


def test_beliefs_of_another_kind_are_refused(tmp_path: Path) -> None:
    BetaBeliefs().save(tmp_path / "beliefs.npz")
    with pytest.raises(BeliefFileError, match="calibrated"):
        CalibratedBeliefs().load(tmp_path / "beliefs.npz")


def test_the_last_group_is_combined_from_its_parts() -> None:
    """A group in two parts is mixed if its parts differ; a late part of an older group changes nothing."""
    beliefs = CalibratedBeliefs(20)
    for step, rewards in ((3, [0.0, 0.0]), (3, [1.0]), (1, [1.0, 1.0])):
        beliefs.observe(Outcomes.of_groups(step, [("a", rewards)]))
    assert beliefs.table["last"].tolist() == [3]
    beliefs.observe(Outcomes.of_groups(4, [("a", [0.0])]))
    assert beliefs.table["last"].tolist() == [2]
    beliefs.observe(Outcomes.of_groups(5, [("a", [float("nan")])]))
    assert beliefs.table["last"].tolist() == [2]


def as_bytes(state: Any) -> Any:
    """State in which arrays are bytes, so that equality means equality to the bit."""
    if isinstance(state, dict):
        return {name: as_bytes(value) for name, value in state.items()}
    return (state.dtype.str, state.shape, state.tobytes()) if isinstance(state, np.ndarray) else state


def test_a_forecast_is_pure() -> None:
    """The state before and after is the same to the bit, and so is the state after later outcomes."""
    used, unused = CalibratedBeliefs(20), CalibratedBeliefs(20)
    rates, rows = np.full(PROMPTS, 0.4), np.arange(50)
    outcomes = [
        with_features_of(outcomes_of(rates, rows, k, np.random.default_rng(k)), gaussian_features) for k in (0, 1)
    ]
    for beliefs in (used, unused):
        beliefs.observe(outcomes[0])
    before = as_bytes(used.state_dict())
    first = used.forecast(IDS, 1, gaussian_features(IDS)).success_rates_P
    used.forecast(IDS[:7], 3, plain(np.ones((7, 6))))
    assert as_bytes(used.state_dict()) == before
    np.testing.assert_array_equal(used.forecast(IDS, 1, gaussian_features(IDS)).success_rates_P, first)
    for beliefs in (used, unused):
        beliefs.observe(outcomes[1])
    assert as_bytes(used.state_dict()) == as_bytes(unused.state_dict())


def test_prompts_without_features_are_forecast_by_their_counts_alone() -> None:
    beliefs = CalibratedBeliefs(20)
    beliefs.observe(
        with_features_of(
            outcomes_of(np.full(PROMPTS, 0.4), np.arange(50), 0, np.random.default_rng(0)), confidence_only
        )
    )
    forecast = beliefs.forecast(IDS[:3], 1)
    assert forecast.seen_P.all()
    beliefs.observe(Outcomes.of_groups(1, [(IDS[0], [1.0, 0.0])]))  # outcomes without the features of their plan


@pytest.mark.parametrize("features", [gaussian_features, confidence_only])
def test_features_may_be_known_later_than_the_first_outcomes(features: Features) -> None:
    """What was learned without features is kept, and forecasts without features stay the same."""
    beliefs = CalibratedBeliefs(20)
    outcomes = outcomes_of(np.full(PROMPTS, 0.4), np.arange(50), 0, np.random.default_rng(0))
    beliefs.observe(outcomes)
    before = beliefs.forecast(IDS, 1).success_rates_P
    assert beliefs.forecast(IDS[:3], 1, features(IDS[:3])).seen_P.all()
    np.testing.assert_array_equal(beliefs.forecast(IDS, 1).success_rates_P, before)
    beliefs.observe(with_features_of(dataclasses.replace(outcomes, step=1), features))
    assert beliefs.feature_model is not None
    assert beliefs.feature_model.weights_F.size == features(IDS[:1]).features_P_F.shape[1] + 1


@pytest.mark.parametrize("found", [np.zeros(3), np.zeros((2, 4)), np.full((3, 4), np.inf)])
def test_features_of_a_wrong_shape_or_infinite_are_refused(found: FloatArray) -> None:
    with pytest.raises(ValueError, match="one row of finite numbers"):
        CalibratedBeliefs(20).forecast(["a", "b", "c"], 0, PromptFeatures(found, np.zeros((3, 0))))
    with pytest.raises(ValueError, match="confidence of 3 prompts .* one row of finite numbers"):
        CalibratedBeliefs(20).forecast(["a", "b", "c"], 0, PromptFeatures(np.ones((3, 1)), found))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (gaussian_features, "6 features each, and beliefs have learned from 1:"),
        (lambda ids: plain(np.ones((len(ids), 1))), "0 confidence values each, and beliefs have learned from 1:"),
    ],
)
def test_a_changed_number_of_features_is_refused(tmp_path: Path, now: Features, message: str) -> None:
    beliefs = CalibratedBeliefs(20)
    beliefs.observe(
        with_features_of(outcomes_of(np.full(PROMPTS, 0.4), np.arange(5), 0, np.random.default_rng(0)), confidence_only)
    )
    beliefs.save(tmp_path / "beliefs.npz")
    resumed = CalibratedBeliefs(20)
    resumed.load(tmp_path / "beliefs.npz")
    with pytest.raises(ValueError, match=message):
        resumed.forecast(IDS[:3], 1, now(IDS[:3]))


def test_wide_features_have_the_same_projection_every_time() -> None:
    wide = np.random.default_rng(9).standard_normal((PROMPTS, 3000))
    beliefs = [CalibratedBeliefs(20) for _ in range(2)]
    for each in beliefs:
        outcomes = outcomes_of(np.full(PROMPTS, 0.4), np.arange(40), 0, np.random.default_rng(1))
        each.observe(with_features_of(outcomes, lambda ids: plain(wide[[int(i[1:]) for i in ids]])))
    first, second = (each.forecast(IDS, 1, plain(wide)).success_rates_P for each in beliefs)
    np.testing.assert_array_equal(first, second)
    assert beliefs[0].feature_model is not None and beliefs[0].feature_model.weights_F.size == 513
