"""Reinforce-Ada: when a prompt is done, what remains of its rollouts, and what they are judged by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.published.reinforce_ada import ReinforceAda, balanced_rows
from knapsack_rl.outcomes import Outcomes
from scripted import Script, asked, trained


def test_balanced_stops_with_half_of_each_kind() -> None:
    world = Script({"half": "1100" + "0" * 4, "late": "1" + "0" * 7 + "1" + "0" * 7, "never": "0", "always": "1"})
    result = world.run_step(ReinforceAda("balanced"), groups=4, budget=16)  # n = 4: two of each kind
    assert [list(round_) for round_ in asked(result)] == [
        ["half", "late", "never", "always"],
        ["late", "never", "always"],
        ["never", "always"],
        ["never", "always"],
    ]
    assert {count for round_ in asked(result) for count in round_.values()} == {8}
    assert trained(result) == {"half": [1, 1, 0, 0], "late": [1, 0, 0, 1], "never": [0] * 4, "always": [1] * 4}
    assert result.rollouts == 8 + 16 + 32 + 32


def test_positive_stops_with_the_first_success() -> None:
    world = Script({"once": "0" * 7 + "1", "later": "0" * 8 + "1110" + "0" * 4, "always": "1", "never": "0"})
    result = world.run_step(ReinforceAda("positive"), groups=4, budget=16)
    assert [list(round_) for round_ in asked(result)] == [
        ["once", "later", "always", "never"],
        ["later", "never"],
        ["never"],
        ["never"],
    ]
    assert trained(result) == {"once": [0, 0, 0, 1], "later": [0, 0, 1, 1], "always": [1] * 4, "never": [0] * 4}


def test_baseline_and_scale_are_those_of_all_that_was_drawn() -> None:
    world = Script({"one": "1" + "0" * 30, "three": "10100010" + "0"})
    result = world.run_step(ReinforceAda("positive"), groups=2, budget=8)
    assert trained(result) == {"one": [1, 0, 0, 0], "three": [1, 0, 1, 0]}
    assert result.batch.baseline_P == pytest.approx([1 / 8, 3 / 8])
    # sum of squares 7/8 and 15/8, over 7
    assert result.batch.scale_P == pytest.approx([np.sqrt(1 / 8), np.sqrt(15 / 56)])


def test_rollouts_without_an_answer_count_on_no_side() -> None:
    world = Script({"a": "1???????" + "0" * 8, "b": "?", "c": "0???????" + "?", "d": "1000" + "0"}, short=["d"])
    result = world.run_step(ReinforceAda("balanced"), groups=4, budget=8)
    assert [list(round_) for round_ in asked(result)] == [list("abcd"), list("abcd"), list("bcd"), list("bcd")]
    assert trained(result) == {"a": [1, 0]}  # nothing but one answer of c, and none of b and d
    assert result.batch.baseline_P == pytest.approx([1 / 9])


@given(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), max_size=20), st.integers(2, 9))
def test_thinning_out_keeps_as_many_of_both_as_it_can(rewards: list[float], size: int) -> None:
    outcomes = Outcomes.of_groups(0, [("other", [1.0, 0.0]), ("a", rewards)])
    kept = np.array(rewards)[balanced_rows(outcomes, size)[2:]]
    ones, zeros = rewards.count(1.0), rewards.count(0.0)
    assert kept.size == min(size, ones + zeros)
    if ones >= size // 2 and zeros >= size - size // 2:
        assert kept.sum() == size // 2
    elif ones + zeros >= size:
        assert kept.sum() == (ones if ones < size // 2 else size - zeros)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"choice": "both"}, "choice is 'both'"), ({"per_round": 0}, "per_round is 0"), ({"max_rounds": 0}, "max_rounds")],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforceAda(**wrong)  # type: ignore[arg-type]


def test_groups_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of one"):
        Script({"a": "1"}).run_step(ReinforceAda(), groups=1, budget=1)
