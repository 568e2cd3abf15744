"""Features of texts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from knapsack_rl import Outcomes
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.online_logistic import logistic
from knapsack_rl.features.text import WIDTH, TextFeatures, prompt_text

pytest.importorskip("sklearn")

PROBE = "from knapsack_rl.features.text import TextFeatures as T; print(T()(['Add 3 and 4.']).features_P_F[0].tolist())"


def similarity(one: str, other: str) -> float:
    a, b = TextFeatures()([one, other]).features_P_F
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_texts_that_are_alike_look_alike() -> None:
    asked = "What is the sum of 17 and 25?"
    assert similarity(asked, "What is the sum of 38 and 14?") > 0.8
    assert similarity(asked, "Reverse the list [4, 9, 2].") < 0.65
    assert similarity("compute 3 + 4", "compute 3 * 4") < 1 - 1e-3


def test_features_are_the_same_in_every_process_and_beside_other_prompts() -> None:
    answer = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    found = TextFeatures()(["Subtract 5 from 9.", "Add 3 and 4."])
    assert found.features_P_F.shape == (2, WIDTH)
    assert found.confidence_P_C.shape == (2, 0)
    assert WIDTH == 256
    assert answer.stdout.strip() == str(found.features_P_F[1].tolist())


def test_a_chat_has_the_features_of_its_contents() -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    picture = {"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "Which?"}]}
    assert prompt_text(said) == "Be brief.\n1 + 1?"
    assert prompt_text([picture]).strip() == "Which?"
    assert prompt_text(np.array(said, dtype=object)) == prompt_text(said)  # as a table has them
    text, chat = TextFeatures()(["Be brief.\n1 + 1?", said]).features_P_F.tolist()
    assert text == chat


def test_empty_texts_and_no_texts() -> None:
    found = TextFeatures()(["", "x"])
    assert found.features_P_F[0].any()  # it has a length
    assert np.isfinite(found.features_P_F).all()
    none = TextFeatures()([])
    assert (none.features_P_F.shape, none.confidence_P_C.shape) == ((0, WIDTH), (0, 0))


def test_beliefs_learn_from_texts() -> None:
    """Rates follow the number of letters: the forecast of an unseen prompt comes from its text."""
    rng = np.random.default_rng(0)
    texts = {f"p{i}": "reverse " + "".join(rng.choice(list("abcdef"), 1 + i % 8)) for i in range(400)}
    rates = {prompt_id: float(logistic(np.array(2 * (12 - len(text))))) for prompt_id, text in texts.items()}
    features = TextFeatures()
    blind, beliefs = CalibratedBeliefs(1000), CalibratedBeliefs(1000)
    for step in range(12):
        ids = list(texts)[20 * step : 20 * step + 20]
        outcomes = Outcomes.of_groups(step, [(i, (rng.random(8) < rates[i]).astype(float).tolist()) for i in ids])
        blind.observe(outcomes)
        beliefs.observe(replace(outcomes, features=features([texts[i] for i in ids])))
    unseen = list(texts)[300:]
    true = np.array([rates[prompt_id] for prompt_id in unseen])
    found = features([texts[prompt_id] for prompt_id in unseen])
    forecasts = blind.forecast(unseen, 12), beliefs.forecast(unseen, 12, found)
    errors = [np.mean((forecast.success_rates_P - true) ** 2) for forecast in forecasts]
    assert errors[1] < 0.3 * errors[0], errors


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r"pip install 'knapsack-rl\[text\]'"):
        TextFeatures()


def test_half_a_surrogate_pair_is_a_character_like_others() -> None:
    a, b = TextFeatures()(["a \ud83d b", "a ? b"]).features_P_F
    np.testing.assert_array_equal(a, b)
