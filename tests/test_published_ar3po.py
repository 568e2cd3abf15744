"""AR3PO's stopping rule, stage by stage."""

from __future__ import annotations

import pytest

from knapsack_arena.published.ar3po import Ar3po
from scripted import Script, asked, trained


def test_a_prompt_gets_stages_until_it_is_solved_once() -> None:
    world = Script({"first": "0100", "third": "0000" * 2 + "0010", "never": "0", "always": "1"})
    result = world.run_step(Ar3po(), groups=4, budget=32)  # n = 8, so stages of 4
    assert asked(result) == [
        {"first": 4, "third": 4, "never": 4, "always": 4},
        {"third": 4, "never": 4},
        {"third": 4, "never": 4},
        {"never": 4},
    ]
    assert trained(result) == {
        "first": [0, 1, 0, 0],
        "third": [0] * 10 + [1, 0],
        "never": [0] * 16,  # no answer is reused
        "always": [1] * 4,
    }
    assert result.rollouts == 16 + 8 + 8 + 4


def test_a_step_ends_as_soon_as_all_are_solved() -> None:
    result = Script(dict.fromkeys("ab", "10")).run_step(Ar3po(), groups=2, budget=8)
    assert asked(result) == [{"a": 2, "b": 2}]


def test_silence_does_not_solve_and_is_no_group() -> None:
    world = Script({"a": "?1", "b": "1?", "c": "??"}, short=["c"])
    result = world.run_step(Ar3po(stages=2, per_stage=2), groups=3, budget=12)
    assert asked(result) == [{"a": 2, "b": 2, "c": 2}, {"c": 2}]
    assert trained(result) == {}


@pytest.mark.parametrize("wrong", [{"stages": 0}, {"per_stage": 1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Ar3po(**wrong)
