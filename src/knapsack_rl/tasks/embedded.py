"""Procedural string tasks of graded difficulty, each prompt with one right answer.

Five families at four lengths make twenty levels. Every level also has a *misconception*: a wrong rule whose answers
have the same form (the text forwards instead of backwards, the smallest digit instead of the largest). The warm start
trains a model on right and misconceived answers in proportions that depend on the level; initial success rates then lie
anywhere in [0, 1].
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypedDict

LETTERS: Final = "abcdefgh"
DIGITS: Final = "0123456789"
# Probability of a right answer in the data of the warm start, by level, easy ones first.
RIGHT_BY_LEVEL: Final = (0.85, 0.45, 0.12, 0.02)
ANSWER_MARK: Final = "="
# The longest answer (6 characters) and the end-of-sequence token; TRL's ``max_completion_length`` for these tasks.
MAX_ANSWER_TOKENS: Final = 8


class Row(TypedDict):
    """One prompt as a row of a data set."""

    prompt: str
    answer: str
    prompt_id: str
    family: str


@dataclass(frozen=True)
class Family:
    """A rule, its misconception, and the form of its prompts.

    Attributes:
        name: its name in reports.
        letter: first character of its prompts.
        alphabet: characters of the input string.
        lengths: input lengths by level, easy ones first.
        right: the rule.
        wrong: the misconception.
    """

    name: str
    letter: str
    alphabet: str
    lengths: tuple[int, int, int, int]
    right: Callable[[str], str]
    wrong: Callable[[str], str]


FAMILIES: Final = (
    Family("reverse", "r", LETTERS, (3, 4, 5, 6), lambda s: s[::-1], lambda s: s),
    Family("sort", "s", DIGITS, (3, 4, 5, 6), lambda s: "".join(sorted(s)), lambda s: "".join(sorted(s))[::-1]),
    # Four letters, so that the shortest level has enough different prompts for both splits.
    Family("count", "c", "abcd", (3, 4, 6, 8), lambda s: str(s.count("a")), lambda s: str(s.count("b"))),
    Family("max", "m", DIGITS, (3, 4, 5, 6), max, min),
    Family("every-second", "e", LETTERS, (3, 4, 5, 6), lambda s: s[::2], lambda s: s[1::2]),
)
LEVELS: Final = tuple((family, level) for level in range(len(RIGHT_BY_LEVEL)) for family in FAMILIES)
CHARACTERS: Final = "".join(sorted(set("".join(f.letter + f.alphabet for f in FAMILIES) + DIGITS + ":" + ANSWER_MARK)))


@dataclass(frozen=True)
class Question:
    """One drawn prompt with its right answer and the misconception's answer."""

    family: Family
    level: int
    text: str

    @property
    def prompt(self) -> str:
        """The input of the model: ``r:abc=``."""
        return f"{self.family.letter}:{self.text}{ANSWER_MARK}"

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.family.right(self.text)

    @property
    def misconception(self) -> str:
        """The answer of the wrong rule, which may coincide with the right one."""
        return self.family.wrong(self.text)

    def row(self) -> Row:
        """The question as a row of a data set, with its prompt as id."""
        family = f"{self.family.name}-{self.family.lengths[self.level]}"
        return Row(prompt=self.prompt, answer=self.answer, prompt_id=self.prompt, family=family)


def draw(rng: random.Random, family: Family, level: int) -> Question:
    """Draw a random question of one level."""
    text = "".join(rng.choice(family.alphabet) for _ in range(family.lengths[level]))
    return Question(family, level, text)


def taught(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draw random questions with the answers of the warm start, right with the probability of their level."""
    questions = [draw(rng, *rng.choice(LEVELS)) for _ in range(count)]
    right = [rng.random() < RIGHT_BY_LEVEL[question.level] for question in questions]
    return [(q.prompt, q.answer if ok else q.misconception) for q, ok in zip(questions, right, strict=True)]


def splits(train: int = 256, heldout: int = 256, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Draw training and held-out rows: seeded, levels in equal parts, every prompt once.

    Args:
        train: training rows.
        heldout: held-out rows, none of which is a training row.
        seed: of the draw, which also depends on the two sizes.

    Returns:
        The two lists, each shuffled.

    Raises:
        ValueError: a negative number of rows, or more than there are different prompts.
    """
    if min(train, heldout) < 0:
        raise ValueError(f"{train} training and {heldout} held-out rows were asked for: a number is negative")
    there = sum(len(family.alphabet) ** family.lengths[level] for family, level in LEVELS)
    # At most a tenth: drawing until a new prompt is found slows down as they run out.
    if train + heldout > there // 10:
        raise ValueError(f"there are {there // 10} embedded prompts to draw; {train} + {heldout} were asked for")
    rng = random.Random(seed)
    drawn = list(islice(_distinct(rng), train + heldout))
    # Levels alternate in the draw, so both parts have the same mixture.
    parts = drawn[:train], drawn[train:]
    for part in parts:
        rng.shuffle(part)
    return parts


def _distinct(rng: random.Random) -> Iterator[Row]:
    """Different rows, levels in turn, until no level yields new ones."""
    seen: set[str] = set()
    open_levels = list(LEVELS)
    while open_levels:
        for family, level in list(open_levels):
            # A level without a new prompt in this many draws counts as exhausted.
            fresh = next((q for q in (draw(rng, family, level) for _ in range(200)) if q.prompt not in seen), None)
            if fresh is None:
                open_levels.remove((family, level))
                continue
            seen.add(fresh.prompt)
            yield fresh.row()
