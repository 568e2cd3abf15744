"""What prompts look like by their text."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from knapsack_rl import Outcomes
from knapsack_rl.calibrated import CalibratedBeliefs
from knapsack_rl.logistic import logistic
from knapsack_rl.text_features import WIDTH, TextFeatures, prompt_text

pytest.importorskip("sklearn")

PROBE = "from knapsack_rl.text_features import TextFeatures as T; t = T(); t.remember(['a'], ['Add 3 and 4.']); "


def similarity(one: str, other: str) -> float:
    features = TextFeatures()
    features.remember(["one", "other"], [one, other])
    a, b = features(["one", "other"])
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_texts_that_are_alike_look_alike() -> None:
    asked = "What is the sum of 17 and 25?"
    assert similarity(asked, "What is the sum of 38 and 14?") > 0.8
    assert similarity(asked, "Reverse the list [4, 9, 2].") < 0.65
    assert similarity("compute 3 + 4", "compute 3 * 4") < 1 - 1e-3


def test_features_are_the_same_in_every_process_and_beside_other_prompts() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE + "print(t(['a'])[0].tolist())"], capture_output=True, text=True, check=True
    )
    features = TextFeatures()
    features.remember(["b", "a"], ["Subtract 5 from 9.", "Add 3 and 4."])
    found = features(["a"])
    assert found.shape == (1, WIDTH)
    assert WIDTH == 256
    assert answer.stdout.strip() == str(found[0].tolist())


def test_a_chat_looks_like_what_is_said_in_it() -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    picture = {"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "Which?"}]}
    assert prompt_text(said) == "Be brief.\n1 + 1?"
    assert prompt_text([picture]).strip() == "Which?"
    features = TextFeatures()
    features.remember(["text", "chat"], ["Be brief.\n1 + 1?", said])
    assert features(["text"]).tolist() == features(["chat"]).tolist()


def test_prompts_that_it_was_not_told_of_look_like_nothing() -> None:
    features = TextFeatures()
    features.remember([], [])
    features.remember(["empty"], [""])
    assert not features(["unknown"]).any()
    assert features(["empty"]).any()  # it has a length
    assert np.isfinite(features(["empty", "unknown"])).all()


def test_memory_is_bounded_and_the_latest_are_kept() -> None:
    features = TextFeatures(most=100)
    tracemalloc.start()
    for start in range(0, 500, 50):
        ids = [f"p{i}" for i in range(start, start + 50)]
        features.remember(["p0", *ids], ["the first", *(f"prompt number {i} " * 20 for i in ids)])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [i for i in range(500) if features([f"p{i}"]).any()] == [0, *range(401, 500)]
    assert used < 100 * 1400 + 60_000  # and no texts, of 400 bytes each


def test_beliefs_learn_from_texts() -> None:
    """Rates follow the number of letters: a prompt never seen before is judged by those that were."""
    rng = np.random.default_rng(0)
    texts = {f"p{i}": "reverse " + "".join(rng.choice(list("abcdef"), 1 + i % 8)) for i in range(400)}
    rates = {prompt_id: float(logistic(np.array(2 * (12 - len(text))))) for prompt_id, text in texts.items()}
    features = TextFeatures()
    blind, beliefs = CalibratedBeliefs(1000), CalibratedBeliefs(1000, features)
    for step in range(12):
        ids = list(texts)[20 * step : 20 * step + 20]
        features.remember(ids, [texts[prompt_id] for prompt_id in ids])
        outcomes = Outcomes.of_groups(step, [(i, (rng.random(8) < rates[i]).astype(float).tolist()) for i in ids])
        for one in (blind, beliefs):
            one.forecast(ids, step)
            one.observe(outcomes)
    unseen = list(texts)[300:]
    features.remember(unseen, [texts[prompt_id] for prompt_id in unseen])
    true = np.array([rates[prompt_id] for prompt_id in unseen])
    errors = [np.mean((one.forecast(unseen, 12).success_rates_P - true) ** 2) for one in (blind, beliefs)]
    assert errors[1] < 0.3 * errors[0], errors


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r"pip install 'knapsack-rl\[text\]'"):
        TextFeatures()
