"""Statistics of uneven groups, against the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import group_advantages, group_statistics, prompt_weights

GROUPS = st.lists(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(float("nan"))), max_size=6), min_size=1, max_size=6
)


@given(GROUPS, st.randoms(use_true_random=False))
def test_statistics_are_those_of_each_group(groups: list[list[float]], random: object) -> None:
    rows = [(i, reward) for i, group in enumerate(groups) for reward in group]
    random.shuffle(rows)  # type: ignore[attr-defined]
    group_PG, rewards_PG = np.array([i for i, _ in rows], dtype=np.int64), np.array([r for _, r in rows])
    found = group_statistics(group_PG, rewards_PG, len(groups))
    for i, group in enumerate(groups):
        answers = [reward for reward in group if not np.isnan(reward)]
        assert found.answers_P[i] == len(answers)
        assert found.mean_P[i] == pytest.approx(np.mean(answers) if answers else 0, abs=1e-12)
        assert found.deviation_P[i] == pytest.approx(np.std(answers, ddof=1) if len(answers) > 1 else 0, abs=1e-12)


@given(GROUPS)
def test_advantages_are_grpos(groups: list[list[float]]) -> None:
    ids = [f"p{i}" for i, group in enumerate(groups) for _ in group]
    rewards = [reward for group in groups for reward in group]
    found = group_advantages(ids, rewards) if rewards else np.zeros(0)
    at = 0
    for group in groups:
        answers = np.array([reward for reward in group if not np.isnan(reward)])
        deviation = answers.std(ddof=1) if answers.size > 1 else 0.0
        for reward in group:
            expected = 0.0 if np.isnan(reward) else (reward - answers.mean()) / (deviation + 1e-4)
            assert found[at] == pytest.approx(expected, abs=1e-9)
            at += 1


def test_every_prompt_weighs_the_same() -> None:
    ids = ["a"] * 2 + ["b"] * 6
    plain = group_advantages(ids, [1, 0, 1, 1, 1, 0, 0, 0])
    weighted = group_advantages(ids, [1, 0, 1, 1, 1, 0, 0, 0], weighting="prompt")
    np.testing.assert_allclose(weighted[:2], plain[:2] * 2)
    np.testing.assert_allclose(weighted[2:], plain[2:] * 4 / 6)
    assert (prompt_weights(np.array([2, 0, 6])) * np.array([2, 0, 6])).tolist() == [4, 0, 4]
    assert prompt_weights(np.array([5, 5])).tolist() == [1, 1]


def test_scales() -> None:
    rewards = [1.0, 0.0, 3.0, 3.0]
    assert group_advantages([0, 0, 1, 1], rewards, scale="none").tolist() == [0.5, -0.5, 0, 0]
    batch = group_advantages([0, 0, 1, 1], rewards, scale="batch")
    np.testing.assert_allclose(batch, np.array([0.5, -0.5, 0, 0]) / (np.std(rewards, ddof=1) + 1e-4))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards of shape \(2,\) came with groups of shape \(1,\)"):
        group_advantages([0], [1.0, 0.0])
    with pytest.raises(ValueError, match="scale='std'"):
        group_advantages([0], [1.0], scale="std")  # type: ignore[arg-type]
