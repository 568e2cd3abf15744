"""Beliefs that weigh what they know by its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from knapsack_rl import BeliefFileError, Outcomes, PosteriorBeliefs
from knapsack_rl.beliefs import Beliefs
from knapsack_rl.calibrated import CalibratedBeliefs, Features, Look
from knapsack_rl.logistic import logistic
from knapsack_rl.notation import FloatArray

PROMPTS = 200
IDS = [f"p{i}" for i in range(PROMPTS)]
LOOKS = np.random.default_rng(5).standard_normal((PROMPTS, 6))


def looks(prompt_ids: Sequence[str]) -> FloatArray:
    found: FloatArray = LOOKS[[int(prompt_id[1:]) for prompt_id in prompt_ids]]
    return found


def outcomes_of(rates: FloatArray, rows: np.ndarray, step: int, rng: np.random.Generator, n: int = 6) -> Outcomes:
    return Outcomes.of_groups(step, [(IDS[i], (rng.random(n) < rates[i]).astype(float).tolist()) for i in rows])


def squared_error(beliefs: Beliefs, rates_of: list[FloatArray], seed: int = 0, per_step: int = 20, n: int = 6) -> float:
    """Mean squared error of the forecasts of the last half of a run in which nothing was planned."""
    rng = np.random.default_rng(seed)
    errors = []
    for step, rates in enumerate(rates_of):
        rows = rng.choice(PROMPTS, per_step, replace=False)
        forecast = beliefs.forecast([IDS[i] for i in rows], step)
        if step >= len(rates_of) // 2:
            errors.append(np.mean((forecast.success_rates_P - rates[rows]) ** 2))
        beliefs.observe(outcomes_of(rates, rows, step, rng, n))
    return float(np.mean(errors))


def test_features_that_tell_are_used() -> None:
    rates = logistic(2.5 * LOOKS[:, 0] - 1.5 * LOOKS[:, 1])
    with_looks = squared_error(CalibratedBeliefs(1000, looks), [rates] * 40)
    without = squared_error(CalibratedBeliefs(1000), [rates] * 40)
    assert with_looks < 0.5 * without


def test_features_that_mislead_are_silenced() -> None:
    rates = np.where(np.random.default_rng(1).random(PROMPTS) < 0.5, 0.05, 0.9)
    with_looks = squared_error(CalibratedBeliefs(1000, looks), [rates] * 60)
    without = squared_error(CalibratedBeliefs(1000), [rates] * 60)
    assert with_looks < 1.2 * without


SURE = np.random.default_rng(10).random(PROMPTS) < 0.5


def sure(prompt_ids: Sequence[str]) -> Look:
    """Says nothing but whether the policy is sure of itself."""
    sure_P = SURE[[int(prompt_id[1:]) for prompt_id in prompt_ids]]
    return Look(np.ones((len(prompt_ids), 1)), np.where(sure_P, 2.0, -1.0)[:, None])


def test_confidence_means_what_the_last_group_made_of_it() -> None:
    """Who is unsure is right half of the time; who is sure knows, or is mistaken, and the last group shows which.

    Counts fade quickly here, and groups are of two, so that little else is known of a prompt.
    """
    knows = np.random.default_rng(11).random(PROMPTS) < 0.5
    rates = np.where(SURE, np.where(knows, 0.98, 0.02), 0.5)
    with_it = squared_error(CalibratedBeliefs(2, sure), [rates] * 60, n=2)
    as_feature = CalibratedBeliefs(2, lambda ids: sure(ids).confidence_P_C)
    assert with_it < 0.6 * squared_error(as_feature, [rates] * 60, n=2)


def test_confidence_that_misleads_is_silenced() -> None:
    rates = np.where(np.random.default_rng(1).random(PROMPTS) < 0.5, 0.05, 0.9)
    with_it, without = CalibratedBeliefs(1000, sure), CalibratedBeliefs(1000)
    assert squared_error(with_it, [rates] * 60) < 1.2 * squared_error(without, [rates] * 60)


def test_prompts_that_learn_together_are_followed() -> None:
    """All rates rise while most prompts are not looked at: plain counts stay behind."""
    at_first = np.random.default_rng(2).normal(-2, 1, PROMPTS)
    rising = [logistic(at_first + 0.06 * step) for step in range(60)]
    assert squared_error(CalibratedBeliefs(30), rising) < 0.8 * squared_error(PosteriorBeliefs(30), rising)


def test_its_strength_is_honest() -> None:
    """Of prompts believed alike, the true rates scatter as the Beta says: a standardised square error near 1."""
    rng = np.random.default_rng(4)
    rates = logistic(1.5 * LOOKS[:, 0] + rng.normal(0, 1, PROMPTS))
    beliefs = CalibratedBeliefs(1000, looks)
    ratios = []
    for step in range(120):
        rows = rng.choice(PROMPTS, 20, replace=False)
        forecast = beliefs.forecast([IDS[i] for i in rows], step)
        mean, strength = forecast.success_rates_P, forecast.strength_P
        if step >= 60:
            ratios.append(np.mean((rates[rows] - mean) ** 2) / np.mean(mean * (1 - mean) / (strength + 1)))
        beliefs.observe(outcomes_of(rates, rows, step, rng))
    assert 0.4 < np.mean(ratios) < 1.6


def test_a_prompt_never_seen_gets_what_its_look_says() -> None:
    rng = np.random.default_rng(6)
    rates = logistic(3 * LOOKS[:, 0])
    beliefs = CalibratedBeliefs(1000, looks)
    for step in range(60):
        beliefs.observe(outcomes_of(rates, rng.choice(100, 20, replace=False), step, rng))
    forecast = beliefs.forecast(IDS[100:], 60)
    assert not forecast.seen_P.any()
    assert np.corrcoef(forecast.success_rates_P, rates[100:])[0, 1] > 0.9


@pytest.mark.parametrize("features", [None, looks, sure])
def test_a_resumed_run_forecasts_as_one_that_never_stopped(tmp_path: Path, features: object) -> None:
    rates, rng = np.full(PROMPTS, 0.3), np.random.default_rng(7)
    beliefs = CalibratedBeliefs(20, features)  # type: ignore[arg-type]
    for step in range(6):
        beliefs.observe(outcomes_of(rates, rng.choice(PROMPTS, 30, replace=False), step, rng))
    beliefs.save(tmp_path / "beliefs.npz")
    resumed = CalibratedBeliefs(20, features)  # type: ignore[arg-type]
    resumed.load(tmp_path / "beliefs.npz")
    for step in range(6, 10):
        first, second = beliefs.forecast(IDS, step), resumed.forecast(IDS, step)
        np.testing.assert_array_equal(first.success_rates_P, second.success_rates_P)
        np.testing.assert_array_equal(first.strength_P, second.strength_P)
        outcomes = outcomes_of(rates, rng.choice(PROMPTS, 30, replace=False), step, rng)
        beliefs.observe(outcomes)
        resumed.observe(outcomes)


def test_beliefs_of_another_kind_are_refused(tmp_path: Path) -> None:
    PosteriorBeliefs().save(tmp_path / "beliefs.npz")
    with pytest.raises(BeliefFileError, match="calibrated"):
        CalibratedBeliefs().load(tmp_path / "beliefs.npz")


def test_the_last_group_counts_whole_however_it_came() -> None:
    """A group in two parts is mixed if its parts differ; a late part of an older group changes nothing."""
    beliefs = CalibratedBeliefs(20)
    for step, rewards in ((3, [0.0, 0.0]), (3, [1.0]), (1, [1.0, 1.0])):
        beliefs.observe(Outcomes.of_groups(step, [("a", rewards)]))
    assert beliefs.table["last"].tolist() == [3]
    beliefs.observe(Outcomes.of_groups(4, [("a", [0.0])]))
    assert beliefs.table["last"].tolist() == [2]
    beliefs.observe(Outcomes.of_groups(5, [("a", [float("nan")])]))
    assert beliefs.table["last"].tolist() == [2]


def test_a_forecast_changes_nothing_it_says() -> None:
    beliefs = CalibratedBeliefs(20, looks)
    rng = np.random.default_rng(8)
    beliefs.observe(outcomes_of(np.full(PROMPTS, 0.4), np.arange(50), 0, rng))
    first = beliefs.forecast(IDS, 1).success_rates_P
    beliefs.forecast(IDS[:7], 3)
    np.testing.assert_array_equal(beliefs.forecast(IDS, 1).success_rates_P, first)


@pytest.mark.parametrize("found", [np.zeros(3), np.zeros((2, 4)), np.full((3, 4), np.nan)])
def test_features_that_make_no_sense_are_refused(found: FloatArray) -> None:
    with pytest.raises(ValueError, match="one row of finite numbers"):
        CalibratedBeliefs(20, lambda _: found).forecast(["a", "b", "c"], 0)
    with pytest.raises(ValueError, match="confidence of 3 prompts .* one row of finite numbers"):
        CalibratedBeliefs(20, lambda _: Look(np.ones((3, 1)), found)).forecast(["a", "b", "c"], 0)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (looks, "6 features each, and beliefs have learned from 1:"),
        (lambda ids: np.ones((len(ids), 1)), "0 numbers of confidence each, and beliefs have learned from 1:"),
    ],
)
def test_features_stay_what_they_were(tmp_path: Path, now: Features, told: str) -> None:
    beliefs = CalibratedBeliefs(20, sure)
    beliefs.observe(outcomes_of(np.full(PROMPTS, 0.4), np.arange(5), 0, np.random.default_rng(0)))
    beliefs.save(tmp_path / "beliefs.npz")
    resumed = CalibratedBeliefs(20, now)
    resumed.load(tmp_path / "beliefs.npz")
    with pytest.raises(ValueError, match=told):
        resumed.forecast(IDS[:3], 1)


def test_wide_features_are_narrowed_alike_every_time() -> None:
    wide = np.random.default_rng(9).standard_normal((PROMPTS, 3000))
    beliefs = [CalibratedBeliefs(20, lambda ids: wide[[int(i[1:]) for i in ids]]) for _ in range(2)]
    for each in beliefs:
        each.observe(outcomes_of(np.full(PROMPTS, 0.4), np.arange(40), 0, np.random.default_rng(1)))
    first, second = (each.forecast(IDS, 1).success_rates_P for each in beliefs)
    np.testing.assert_array_equal(first, second)
    assert beliefs[0].look is not None and beliefs[0].look.weights_F.size == 513
