"""The task with long answers: its judge, its chances, and the regimes made of it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from knapsack_arena.lab.long_answers import (
    COUNTS,
    FOLLOWERS,
    LETTERS,
    MODES,
    STEPS,
    TOKENS_PER_STEP,
    Walks,
    walks,
)
from knapsack_arena.lab.regimes import CHANCES, HOPELESS_SHARES, REGIMES


@pytest.fixture(scope="module")
def task() -> Walks:
    return walks(0)


def test_seeds_decide_the_task(task: Walks) -> None:
    assert walks(0) == task
    assert walks(1) != task
    assert all(len(set(after)) == FOLLOWERS and letter not in after for letter, after in task.followers.items())


def test_demonstrations_are_right_as_often_as_their_chance(task: Walks) -> None:
    rng = random.Random(0)
    for prompt in task.prompts(12, 1, (0.0, 0.3, 0.7, 1.0), (0.3, 0.5, 0.2)):
        right = [task.verify(prompt, task.demonstration(prompt, rng)) for _ in range(1500)]
        chance = task.chance(prompt)
        assert np.mean(right) == pytest.approx(chance, abs=5 * np.sqrt(chance * (1 - chance) / 1500) + 1e-3)


def test_every_part_of_an_answer_counts(task: Walks) -> None:
    """A right answer with any one character changed, one step more or one less is wrong, other right ones aside."""
    rng = random.Random(1)
    mode, letter = MODES[0], LETTERS[0]
    prompt, written, here = f"{mode}{COUNTS[5]}{letter}=", [], letter
    for left in range(6, 0, -1):
        here = rng.choice(task.followers[here])
        written.append(here + task.codes[mode, here][0] + COUNTS[left - 1])
    answer = "".join(written)
    assert task.verify(prompt, answer)
    second = answer[:1] + task.codes[mode, answer[0]][1] + answer[3:]
    assert task.verify(prompt, second)
    wrong = answer[:1] + task.codes[mode, answer[0]][2] + answer[3:]
    assert not task.verify(prompt, wrong)
    assert not task.verify(prompt, answer[:-TOKENS_PER_STEP])
    assert not task.verify(prompt, answer + answer[-TOKENS_PER_STEP:])
    assert not task.verify(prompt, "")
    assert not task.verify(prompt, letter + answer[1:])  # no letter follows itself
    assert not task.verify(prompt, answer[:3] + COUNTS[0] + answer[4:])


@pytest.mark.parametrize("instance", range(4))
@pytest.mark.parametrize("name", ["long", "hopeless"])
def test_regimes_have_their_shares_of_chances(name: str, instance: int) -> None:
    regime, task = REGIMES[name](instance=instance), walks(instance)
    prompts = [item.prompt for item in (*regime.train, *regime.heldout)]
    assert len(set(prompts)) == len(prompts) == pytest.approx(768, abs=2)  # shares are rounded
    chances = np.array([task.chance(prompt) for prompt in prompts])
    hard = (chances < 0.05).mean()
    middle = ((chances > 0.05) & (chances < 0.95)).mean()
    assert 0.65 < hard < 0.75 if name == "hopeless" else 0.1 < hard < 0.2
    assert middle > 0.25
    assert regime.longest == TOKENS_PER_STEP * max(STEPS) + 1
    assert regime.name == (f"{name}/{instance}" if instance else name)


def test_an_instance_whose_task_has_too_few_prompts_gets_another_task() -> None:
    """`walks(4)` has 89 prompts with a chance below .01 where `hopeless` needs 192."""
    with pytest.raises(ValueError, match="89 prompts have a chance of"):
        walks(4).prompts(768, 0, CHANCES, HOPELESS_SHARES)
    drawn = {name: REGIMES[name](instance=4) for name in ("long", "hopeless")}
    for regime in drawn.values():
        assert regime.teacher(random.Random(0), 5) == walks(1004).teach(random.Random(0), 5)
    assert {len(regime.train) for regime in drawn.values()} == {512}


def test_an_interval_without_enough_prompts_is_said(task: Walks) -> None:
    with pytest.raises(ValueError, match="were asked for"):
        task.prompts(4000, 0, (0.0, 0.5, 1.0), (0.0, 1.0))


def test_instances_are_other_tasks_and_other_models() -> None:
    for name in ("skills", "keys"):
        first, second = REGIMES[name](), REGIMES[name](instance=1)
        assert {item.prompt for item in first.train} != {item.prompt for item in second.train}
        assert first.recipe.seed != second.recipe.seed
