"""Small procedural tasks with one right answer each, hard and easy ones side by side.

Five families at four lengths make twenty levels. Every level also has a *misconception*: a wrong rule that gives an
answer of the same look (reading forwards instead of backwards, the smallest digit instead of the largest). The warm
start teaches a model the right rule and the misconception in proportions that depend on the level, so that prompts
start anywhere between success rate 0 and 1, and GRPO has something to unlearn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypedDict

LETTERS: Final = "abcdefgh"
DIGITS: Final = "0123456789"
# Chance of a right answer in the warm start's data, by the place of a length in its family: easy ones first.
RIGHT_BY_LEVEL: Final = (0.85, 0.45, 0.12, 0.02)
ANSWER_MARK: Final = "="
# The longest answer (6 characters) and the end-of-sequence token; TRL's ``max_completion_length`` for these tasks.
MAX_ANSWER_TOKENS: Final = 8


class Row(TypedDict):
    """One prompt as data sets carry it."""

    prompt: str
    answer: str
    prompt_id: str
    family: str


@dataclass(frozen=True)
class Family:
    """A rule, the misconception that rivals it, and how its prompts look.

    Attributes:
        name: what reports call it.
        letter: first character of its prompts.
        alphabet: what the input string is drawn from.
        lengths: input lengths, from easy to hard.
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
    # Four letters, not two: the shortest level must still have room for two splits of different prompts.
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
        """What the model reads: ``r:abc=``."""
        return f"{self.family.letter}:{self.text}{ANSWER_MARK}"

    @property
    def answer(self) -> str:
        """The one right answer."""
        return self.family.right(self.text)

    @property
    def misconception(self) -> str:
        """What the wrong rule says; by chance it may be right."""
        return self.family.wrong(self.text)

    def row(self) -> Row:
        """The question as a row of a data set; the prompt is unique, so it is the id as well."""
        family = f"{self.family.name}-{self.family.lengths[self.level]}"
        return Row(prompt=self.prompt, answer=self.answer, prompt_id=self.prompt, family=family)


def draw(rng: random.Random, family: Family, level: int) -> Question:
    """A random question of one level."""
    text = "".join(rng.choice(family.alphabet) for _ in range(family.lengths[level]))
    return Question(family, level, text)


def taught(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Random questions with the answers that the base model is taught: right as often as their level has it."""
    questions = [draw(rng, *rng.choice(LEVELS)) for _ in range(count)]
    right = [rng.random() < RIGHT_BY_LEVEL[question.level] for question in questions]
    return [(q.prompt, q.answer if ok else q.misconception) for q, ok in zip(questions, right, strict=True)]


def splits(train: int = 256, heldout: int = 256, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows: seeded, as many of every level as possible, no prompt twice.

    Args:
        train: training rows.
        heldout: held-out rows, none of which is a training row.
        seed: other seeds give other prompts; sizes matter too, since both splits come from one draw.

    Returns:
        The two lists, each shuffled.

    Raises:
        ValueError: more rows than there are different prompts.
    """
    there = sum(len(family.alphabet) ** family.lengths[level] for family, level in LEVELS)
    # A tenth of them: close to the last one, drawing until something new comes would take forever.
    if train + heldout > there // 10:
        raise ValueError(f"there are {there // 10} embedded prompts to draw; {train} + {heldout} were asked for")
    rng = random.Random(seed)
    drawn = list(islice(_distinct(rng), train + heldout))
    # Levels alternate in the draw, so cutting it in two gives both parts the same mixture.
    parts = drawn[:train], drawn[train:]
    for part in parts:
        rng.shuffle(part)
    return parts


def _distinct(rng: random.Random) -> Iterator[Row]:
    """Rows of all levels in turn, never one twice; ends when every level has stopped giving new ones."""
    seen: set[str] = set()
    open_levels = list(LEVELS)
    while open_levels:
        for family, level in list(open_levels):
            # A level that gives nothing new in this many draws is as good as exhausted.
            fresh = next((q for q in (draw(rng, family, level) for _ in range(200)) if q.prompt not in seen), None)
            if fresh is None:
                open_levels.remove((family, level))
                continue
            seen.add(fresh.prompt)
            yield fresh.row()
