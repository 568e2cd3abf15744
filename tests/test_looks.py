"""Looks of prompts: features remembered from the first look, a fresh confidence, and what is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import BeliefFileError, Outcomes
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.looks import CAPACITY, MAX_FEATURES, Looks, log_odds, scaled
from knapsack_rl.beliefs.online_logistic import OnlineLogistic, RunningMeans, logistic
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures

IDS = [f"p{i}" for i in range(60)]
STATES = np.random.default_rng(0).standard_normal((len(IDS), 8))


def row(prompt_id: str) -> int:
    return int(prompt_id[1:])


def describing(ids: list[str]) -> Callable[[IntArray], FloatArray]:
    return lambda rows: STATES[[row(ids[i]) for i in rows]]


@given(st.floats(-200, 0.1))
def test_log_odds_are_those_of_the_probability_kept_off_the_ends_and_rounded(log_prob: float) -> None:
    found = float(log_odds([log_prob])[0])
    probability = min(max(np.exp(log_prob), 0.01), 0.99)
    assert abs(found - np.log(probability / (1 - probability))) <= 0.005 + 1e-9
    assert found == round(found, 2)
    assert not (found == 0 and np.signbit(found))


def test_what_is_not_known_has_no_log_odds() -> None:
    assert np.isnan(log_odds([np.nan, -0.1])).tolist() == [True, False]
    assert log_odds([-np.inf, 0.0]).tolist() == [-4.6, 4.6]


@given(
    st.integers(1, 12),
    st.lists(st.lists(st.sampled_from(IDS[:20]), min_size=1, max_size=10), min_size=1, max_size=8),
)
def test_the_latest_prompts_are_remembered_and_described_once(capacity: int, calls: list[list[str]]) -> None:
    """Against a plain list as the model: first in, first out; what is known is not described again."""
    looks, known = Looks(capacity=capacity), list[str]()
    for ids in calls:
        asked: list[str] = []

        def describe(rows: IntArray, ids: list[str] = ids, asked: list[str] = asked) -> FloatArray:
            asked.extend(ids[i] for i in rows)
            return STATES[[row(ids[i]) for i in rows]]

        new = [prompt_id for prompt_id in dict.fromkeys(ids) if prompt_id not in known]
        assert [ids[i] for i in looks.unknown(ids)] == new
        found = looks(ids, None, describe)
        assert asked == new
        expected = scaled(STATES[[row(prompt_id) for prompt_id in ids]]).astype(np.float16)
        np.testing.assert_array_equal(found.features_P_F, expected)
        known = [*known, *new][-capacity:]
        assert len(looks) == len(known)
    again = looks(IDS[:20]).features_P_F
    assert [IDS[i] for i in np.flatnonzero(~np.isnan(again).any(axis=1))] == sorted(known, key=row)


def test_a_look_has_one_row_per_prompt_and_one_confidence_always() -> None:
    looks = Looks()
    nothing = looks(IDS[:3])
    assert nothing.features_P_F.shape == (3, 0)
    assert np.isnan(nothing.confidence_P_C).all() and nothing.confidence_P_C.shape == (3, 1)
    looks.remember(IDS[:2], STATES[:2])
    found = looks(IDS[1:4], np.array([1.0, np.nan, 2.0]))
    assert np.isnan(found.features_P_F).all(axis=1).tolist() == [False, True, True]
    np.testing.assert_array_equal(found.confidence_P_C[:, 0], [1.0, np.nan, 2.0])


def test_a_row_with_nan_is_not_remembered() -> None:
    looks = Looks()
    looks.remember(["a", "b"], np.array([[1.0, np.nan], [1.0, 2.0]]))
    assert looks.unknown(["a", "b"]).tolist() == [0]


def test_wide_features_are_projected_by_the_same_matrix_in_every_store() -> None:
    wide = np.random.default_rng(1).standard_normal((5, 1500))
    found = [Looks()(IDS[:5], None, lambda rows: wide[rows]).features_P_F for _ in range(2)]
    assert found[0].shape == (5, MAX_FEATURES)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose((found[0] ** 2).mean(axis=1), 1, atol=2e-3)
    # Inner products are preserved approximately: 1 / sqrt(512) is 0.044.
    np.testing.assert_allclose(found[0] @ found[0].T / MAX_FEATURES, scaled_products(wide), atol=0.2)


def scaled_products(features_P_F: FloatArray) -> FloatArray:
    unit = features_P_F / np.linalg.norm(features_P_F, axis=1, keepdims=True)
    products: FloatArray = unit @ unit.T
    return products


def test_features_of_another_number_or_infinite_are_refused() -> None:
    looks = Looks()
    looks.remember(IDS[:2], STATES[:2])
    with pytest.raises(ValueError, match="3 features each, and those remembered have 8"):
        looks.remember(["new"], np.ones((1, 3)))
    with pytest.raises(ValueError, match="or are infinite"):
        looks(["new"], None, lambda rows: np.full((1, 8), np.inf))
    with pytest.raises(ValueError, match="features of 1 prompts have shape"):
        looks(["new"], None, lambda rows: np.ones((2, 8)))
    with pytest.raises(ValueError, match=r"log odds of shape \(2,\)"):
        looks(["new"], np.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        Looks(capacity=0)
    assert len(looks) == 2


def test_looks_are_saved_and_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    looks = Looks(source="a model", capacity=10)
    for first in range(0, 24, 4):
        looks(IDS[first : first + 4], None, describing(IDS[first : first + 4]))
    looks.save(tmp_path / "looks.npz")
    resumed, larger = Looks(capacity=10), Looks()
    for each in (resumed, larger):
        each.load(tmp_path / "looks.npz")
        assert each.source == "a model"
        np.testing.assert_array_equal(each(IDS).features_P_F, looks(IDS).features_P_F)
    assert larger.capacity == CAPACITY
    for each in (looks, resumed):
        each(IDS[30:33], None, describing(IDS[30:33]))
    np.testing.assert_array_equal(resumed(IDS).features_P_F, looks(IDS).features_P_F)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another kind": lambda state: state.update(kind="session"),
    "a key twice": lambda state: state["keys"].fill(1),
    "fewer rows": lambda state: state.update(features=state["features"][:1]),
    "too wide": lambda state: state.update(features=np.zeros((2, 600), np.float16)),
    "not finite": lambda state: state["features"].fill(np.nan),
    "no source": lambda state: state.pop("source"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_looks_are_refused_and_nothing_changes(damage: Callable[[dict[str, Any]], object]) -> None:
    saved, looks = Looks(), Looks()
    saved.remember(IDS[:2], STATES[:2])
    looks.remember(IDS[2:4], STATES[2:4])
    before, state = looks(IDS[:4]).features_P_F, saved.state_dict()
    damage(state)
    with pytest.raises(BeliefFileError):
        looks.load_state_dict(state)
    np.testing.assert_array_equal(looks(IDS[:4]).features_P_F, before)


# -- beliefs that are told NaN ---------------------------------------------------------------------------------------


def learned(
    features: Callable[[IntArray, np.random.Generator], PromptFeatures | None], steps: int = 20, half_life: float = 50.0
) -> CalibratedBeliefs:
    """Beliefs after a run in which the rate of a prompt is a function of its first state."""
    beliefs, rng = CalibratedBeliefs(half_life), np.random.default_rng(3)
    for step in range(steps):
        rows = rng.choice(len(IDS), 15, replace=False)
        groups = [(IDS[i], (rng.random(6) < logistic(2 * STATES[i, :1])).astype(float).tolist()) for i in rows]
        plain = Outcomes.of_groups(step, groups)
        beliefs.observe(
            Outcomes(
                step,
                plain.prompt_ids,
                plain.counts_P,
                plain.rewards_PG,
                features=features(rows, np.random.default_rng(step)),
            )
        )
    return beliefs


def confident(rows: IntArray, rng: np.random.Generator) -> PromptFeatures:
    return PromptFeatures(STATES[rows], 2 * STATES[rows, :1] + 0.3 * rng.standard_normal((rows.size, 1)))


def test_looks_of_which_nothing_is_known_are_no_looks() -> None:
    """Also after other prompts' looks were learned."""
    without = learned(lambda rows, rng: None)
    unknown = learned(
        lambda rows, rng: PromptFeatures(np.full((rows.size, 8), np.nan), np.full((rows.size, 1), np.nan))
    )
    nothing = PromptFeatures(np.full((len(IDS), 8), np.nan), np.full((len(IDS), 1), np.nan))
    expected = without.forecast(IDS, 20)
    found = unknown.forecast(IDS, 20, nothing)
    np.testing.assert_allclose(found.success_rates_P, expected.success_rates_P, atol=1e-9)
    np.testing.assert_array_equal(found.pseudo_count_P, expected.pseudo_count_P)
    later = learned(confident)
    np.testing.assert_array_equal(
        later.forecast(IDS, 20, nothing).success_rates_P, later.forecast(IDS, 20).success_rates_P
    )


def test_an_unknown_input_counts_as_the_mean_of_its_kind() -> None:
    beliefs = learned(confident)
    last = beliefs._last_results(IDS)
    means = beliefs.confidence_means.sums_K_F / beliefs.confidence_means.weights_K_F  # all kinds were observed
    unknown = PromptFeatures(STATES, np.full((len(IDS), 1), np.nan))
    known = PromptFeatures(STATES, means[last])
    assert set(last.tolist()) == {0, 1, 2, 3}  # 0: never observed
    np.testing.assert_allclose(
        beliefs.forecast(IDS, 20, unknown).success_rates_P, beliefs.forecast(IDS, 20, known).success_rates_P, rtol=1e-12
    )


def test_a_few_unknown_looks_do_little_harm_to_what_is_learned() -> None:
    """A tenth of the looks fail: forecasts of prompts whose looks are known stay nearly as good."""
    rates = logistic(2 * STATES[:, 0])

    def failing(rows: IntArray, rng: np.random.Generator) -> PromptFeatures:
        look = confident(rows, rng)
        look.confidence_P_C[rng.random(rows.size) < 0.1] = np.nan
        look.features_P_F[rng.random(rows.size) < 0.1] = np.nan
        return PromptFeatures(look.features_P_F, look.confidence_P_C)

    errors = []
    for features in (confident, failing, lambda rows, rng: None):
        beliefs = learned(features, half_life=2.0)
        look = (
            None
            if features(np.arange(2), np.random.default_rng(0)) is None
            else confident(np.arange(len(IDS)), np.random.default_rng(99))
        )
        errors.append(np.mean((beliefs.forecast(IDS, 20, look).success_rates_P - rates) ** 2))
    assert errors[1] < 1.3 * errors[0]
    assert errors[1] < 0.5 * errors[2]


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_running_means_are_decayed_means_of_what_is_known(kinds: int, batches: int, seed: int) -> None:
    rng, means, sums, weights = np.random.default_rng(seed), RunningMeans(kinds, 0.9), np.zeros(kinds), np.zeros(kinds)
    for _ in range(batches):
        inputs, kind = rng.standard_normal((7, 1)), rng.integers(0, kinds, 7)
        inputs[rng.random(7) < 0.3] = np.nan
        means.learn(inputs, kind)
        for k in range(kinds):
            of_kind = inputs[kind == k, 0]
            sums[k] = 0.9 * sums[k] + np.nansum(of_kind)
            weights[k] = 0.9 * weights[k] + np.sum(~np.isnan(of_kind))
    filled = means.filled(np.full((kinds, 1), np.nan), np.arange(kinds))[:, 0]
    overall = sums.sum() / weights.sum() if weights.sum() else 0.0
    expected = [s / w if w else overall for s, w in zip(sums, weights, strict=True)]
    np.testing.assert_allclose(filled, expected, atol=1e-12)
    given_all = rng.standard_normal((3, 1))
    assert means.filled(given_all, np.zeros(3, dtype=np.int64)) is given_all


# -- belief files of version 1: two confidences, of which the first is entropy -----------------------------------------


def as_version_1(beliefs: CalibratedBeliefs) -> dict[str, Any]:
    state = beliefs.state_dict()
    for name in ("version", "feature_means", "confidence_means"):
        del state[name]
    return state


def with_entropy(size: float) -> Callable[[IntArray, np.random.Generator], PromptFeatures]:
    def features(rows: IntArray, rng: np.random.Generator) -> PromptFeatures:
        look = confident(rows, rng)
        entropy = size * (1 - 0.3 * look.confidence_P_C)
        return PromptFeatures(look.features_P_F, np.hstack([entropy, look.confidence_P_C]))

    return features


def test_an_entropy_that_said_nothing_is_dropped_without_a_trace() -> None:
    """Its weights are those of the prior, so the other weights are what log odds alone would have learned."""
    old, alone = learned(with_entropy(0.0)), learned(confident)
    beliefs = CalibratedBeliefs(50.0)
    beliefs.load_state_dict(as_version_1(old))
    look = confident(np.arange(len(IDS)), np.random.default_rng(99))
    np.testing.assert_allclose(
        beliefs.forecast(IDS, 20, look).success_rates_P, alone.forecast(IDS, 20, look).success_rates_P, atol=1e-9
    )


def test_beliefs_of_version_1_go_on_with_the_log_odds_alone(tmp_path: Path) -> None:
    old, beliefs = learned(with_entropy(1.0)), CalibratedBeliefs(50.0)
    beliefs.load_state_dict(as_version_1(old))
    look = confident(np.arange(len(IDS)), np.random.default_rng(99))
    both = with_entropy(1.0)(np.arange(len(IDS)), np.random.default_rng(99))
    before = beliefs.forecast(IDS, 20, both).success_rates_P  # two confidences, as long as two are given
    np.testing.assert_array_equal(before, old.forecast(IDS, 20, both).success_rates_P)
    beliefs.save(tmp_path / "unchanged.npz")
    unchanged = CalibratedBeliefs(50.0)
    unchanged.load(tmp_path / "unchanged.npz")
    forecast = unchanged.forecast(IDS, 20, look).success_rates_P
    np.testing.assert_array_equal(forecast, beliefs.forecast(IDS, 20, look).success_rates_P)
    # What was learned of the prompts is kept: entropy was a function of the log odds here.
    assert np.abs(forecast - before).max() < 0.1
    outcomes = Outcomes.of_groups(20, [(prompt_id, [1.0, 0.0]) for prompt_id in IDS])
    beliefs.observe(Outcomes(20, outcomes.prompt_ids, outcomes.counts_P, outcomes.rewards_PG, features=look))
    with pytest.raises(ValueError, match="2 confidence values each, and beliefs have learned from 1"):
        beliefs.forecast(IDS, 21, both)
    assert beliefs.state_dict()["version"] == 2


def test_two_confidences_of_version_2_are_never_dropped() -> None:
    beliefs = CalibratedBeliefs(50.0)
    beliefs.load_state_dict(learned(with_entropy(1.0)).state_dict())
    with pytest.raises(ValueError, match="1 confidence values each, and beliefs have learned from 2"):
        beliefs.forecast(IDS, 20, confident(np.arange(len(IDS)), np.random.default_rng(0)))
    with pytest.raises(BeliefFileError, match="version 3"):
        beliefs.load_state_dict(beliefs.state_dict() | {"version": 3})


@given(st.integers(0, 2**32 - 1))
def test_a_regression_without_an_input_is_the_posterior_given_that_its_weight_is_0(seed: int) -> None:
    """For a normal posterior: its maximum and curvature over the weights that are left."""
    rng = np.random.default_rng(seed)
    model = OnlineLogistic(np.zeros(4), np.ones(4), 0.9)
    root = rng.standard_normal((4, 4))
    model.weights_F, model.precision_F_F = rng.standard_normal(4), root @ root.T + np.eye(4)
    kept = model.without([1, 3])

    def energy(weights_F: FloatArray) -> float:
        full = np.zeros(4)
        full[[0, 2]] = weights_F
        return float((full - model.weights_F) @ model.precision_F_F @ (full - model.weights_F) / 2)

    step = 1e-4 * np.eye(2)
    gradient = [(energy(kept.weights_F + s) - energy(kept.weights_F - s)) / 2e-4 for s in step]
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    np.testing.assert_array_equal(kept.precision_F_F, model.precision_F_F[np.ix_([0, 2], [0, 2])])
