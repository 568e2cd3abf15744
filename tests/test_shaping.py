"""Rarity of solutions and budgets of length: the papers' worked numbers; neutral settings change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import group_advantages
from knapsack_rl.shaping import LengthBudget, Rarity, by_embedding, by_final_expression


def _labels(labels: list[str]) -> Rarity:
    return Rarity(lambda prompt, completions: [labels[int(each)] for each in completions])


def test_the_papers_group_of_eight() -> None:
    labels = list("AAABACCD")
    rarity = _labels(labels)
    weights = rarity.weights(np.zeros(8, np.int64), ["q"] * 8, [str(i) for i in range(8)])
    signs = np.array([1, 1, 1, 1, -1, -1, -1, -1])
    np.testing.assert_allclose(signs * weights, [0.5, 0.5, 0.5, 1, -0.5, -(2**-0.5), -(2**-0.5), -1])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_an_exponent_of_0_is_grpo_to_the_bit(groups: list[int], seed: int) -> None:
    group = np.array(sorted(groups))
    rewards = np.random.default_rng(seed).integers(0, 2, group.size).astype(float)
    weights = Rarity(by_final_expression, 0.0).weights(group, ["q"] * group.size, ["a"] * group.size)
    assert (group_advantages(group, rewards) * weights == group_advantages(group, rewards)).all()


@given(st.integers(1, 12), st.floats(0, 3), st.booleans())
def test_unique_answers_keep_their_proportions(size: int, alpha: float, share: bool) -> None:
    rarity = Rarity(by_final_expression, alpha, share)
    weights = rarity.weights(np.zeros(size, np.int64), ["q"] * size, [f"answer {i}" for i in range(size)])
    np.testing.assert_allclose(weights, size**alpha if share else 1.0)


def test_shares_do_not_weaken_large_groups() -> None:
    group = np.repeat([0, 1], [4, 16])
    completions = ["a", "b"] * 10
    by_size = Rarity(by_final_expression).weights(group, ["q"] * 20, completions)
    by_share = Rarity(by_final_expression, share=True).weights(group, ["q"] * 20, completions)
    assert by_size[0] == pytest.approx(2 * by_size[-1])
    assert by_share[0] == pytest.approx(by_share[-1])


def test_final_expressions_are_normalised() -> None:
    texts = [
        "so \\boxed{x + 1}",
        "\\boxed{2} no, \\boxed{X+1}",
        "it is\n x+1 ",
        [{"role": "assistant", "content": "x +1"}],
        "",
    ]
    assert by_final_expression("q", texts) == ["x+1", "x+1", "x+1", "x+1", ""]


def test_embeddings_are_clustered_by_direction() -> None:
    pytest.importorskip("sklearn")
    vectors = {"up": [0.0, 1.0], "also up": [0.1, 1.0], "right": [1.0, 0.0]}
    labels = by_embedding(lambda texts: [vectors[text] for text in texts])("q", ["up", "right", "also up"])
    assert labels[0] == labels[2] != labels[1]
    assert by_embedding(lambda texts: [])("q", ["one"]) == [0]


def test_wrong_input_of_rarity_is_named() -> None:
    with pytest.raises(ValueError, match="alpha is -1"):
        Rarity(by_final_expression, -1)
    with pytest.raises(ValueError, match="gave 1 labels for 2 completions"):
        Rarity(lambda prompt, completions: [0]).weights(np.zeros(2, np.int64), ["q"] * 2, ["a", "b"])
    with pytest.raises(ValueError, match="2 groups, 1 prompts and 2 completions"):
        Rarity(by_final_expression).weights(np.zeros(2, np.int64), ["q"], ["a", "b"])


def test_the_papers_schedule() -> None:
    budget = LengthBudget(256, 0.7, 150)
    assert [budget.tokens(step) for step in (0, 150, 300, 450)] == [256, 179, 125, 87]
    assert budget.tokens(149) == 256 and budget.tokens(10**6) == 1
    assert "179 tokens" in budget.instruction(200)


def test_the_reward_is_a_triangle() -> None:
    budget = LengthBudget(100)
    np.testing.assert_allclose(budget.rewards([0, 50, 100, 150, 200, 500], 0), [0, 0.5, 1, 0.5, 0, 0])
    state = SimpleNamespace(global_step=0)
    assert budget(completion_ids=[[1] * 100, [1] * 150], trainer_state=state, prompts=["a", "b"]) == [1.0, 0.5]


@pytest.mark.parametrize("wrong", [(0, 1.0, 1), (10, 0.0, 1), (10, 1.1, 1), (10, 1.0, 0)])
def test_a_schedule_out_of_range_is_refused(wrong: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="a budget starts at 1 token"):
        LengthBudget(*wrong)
