"""The embedded tasks: their rules, and splits that share no prompt."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.tasks.embedded import CHARACTERS, FAMILIES, LEVELS, MAX_ANSWER_TOKENS, Question, splits

# family, input, the right answer, the misconception's
RULES = [
    ("reverse", "abcd", "dcba", "abcd"),
    ("sort", "3102", "0123", "3210"),
    ("count", "abca", "2", "1"),
    ("count", "bbb", "0", "3"),
    ("max", "3917", "9", "1"),
    ("every-second", "abcde", "ace", "bd"),
]


@pytest.mark.parametrize(("name", "text", "right", "wrong"), RULES)
def test_each_family_has_its_rule_and_its_misconception(name: str, text: str, right: str, wrong: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    question = Question(family, 0, text)
    assert (question.answer, question.misconception) == (right, wrong)


def test_the_default_splits_hold_every_level_alike() -> None:
    train, heldout = splits()
    assert (len(train), len(heldout)) == (256, 256)
    for part in (train, heldout):
        counts = Counter(row["family"] for row in part)
        assert len(counts) == len(LEVELS)
        assert max(counts.values()) - min(counts.values()) <= 1


@settings(max_examples=20, deadline=None)
@given(train=st.integers(0, 200), heldout=st.integers(0, 200), seed=st.integers(0, 5))
def test_no_prompt_occurs_twice_and_a_seed_repeats_itself(train: int, heldout: int, seed: int) -> None:
    parts = splits(train, heldout, seed)
    prompts = [row["prompt"] for part in parts for row in part]
    assert len(set(prompts)) == len(prompts) == train + heldout
    assert splits(train, heldout, seed) == parts


def test_other_seeds_give_other_prompts() -> None:
    assert splits(seed=0)[0] != splits(seed=1)[0]


def test_answers_fit_into_what_the_model_may_say_and_spell() -> None:
    for row in splits()[0]:
        assert len(row["answer"]) < MAX_ANSWER_TOKENS  # and the end of sequence
        assert set(row["prompt"] + row["answer"]) <= set(CHARACTERS)
        assert row["prompt_id"] == row["prompt"]


def test_more_prompts_than_there_are_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="embedded prompts to draw; 100 \\+ 10000000 were asked for"):
        splits(100, 10_000_000)
