"""Options beside the plan: rarity of solutions in the advantages, and a reward for length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from knapsack_rl.shaping import LengthBudget, Rarity


def _by_text(prompt: Any, completions: Any) -> list[str]:
    return [small.text_of(each) for each in completions]


def test_an_exponent_of_0_changes_nothing(tmp_path: Path) -> None:
    plain = small.knapsack(tmp_path / "plain")
    neutral = small.knapsack(tmp_path / "neutral", arguments={"rarity": Rarity(_by_text, 0.0)})
    assert small.weights(plain) == small.weights(neutral)


def test_advantages_are_weighed_by_rarity(tmp_path: Path) -> None:
    """Every completion is its own cluster, or all are one: the same run, but for a factor."""
    changes = {"learning_rate": 0.0, "max_steps": 1}
    unique = Rarity(lambda prompt, completions: list(range(len(completions))))
    same = Rarity(lambda prompt, completions: [0] * len(completions))
    found = [
        np.array(small.knapsack(tmp_path / name, arguments={"rarity": rarity}, **changes)._logs["advantages"])
        for name, rarity in (("plain", None), ("unique", unique), ("same", same))
    ]
    assert found[0].any()
    np.testing.assert_allclose(found[1], found[0])
    np.testing.assert_allclose(found[2], found[0] / 2, rtol=1e-6)  # groups of 4: 4^-1/2


def test_the_length_budget_is_a_reward_function(tmp_path: Path) -> None:
    budget = LengthBudget(3, 0.5, 1)
    trainer = small.knapsack(
        tmp_path, [small.reward, budget], reward_weights=[1.0, 0.2], success_threshold=1.0, max_steps=2
    )
    means = [value for (value,) in small.logged(trainer, "rewards/length_budget/mean")]
    assert len(means) == 2 and means[0] != means[1]
    assert all(0 <= value <= 1 for value in means)
    right = [value for (value,) in small.logged(trainer, "rewards/reward/mean")]
    # What beliefs count as a success is the verifier's word alone: 16 rollouts a step.
    assert trainer.allocator.beliefs.table["successes"].sum() == pytest.approx(16 * sum(right), rel=0.05)
