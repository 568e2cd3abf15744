"""Worlds of tasks with one right answer each, and base models that know them by halves.

Three regimes, because what a rule gains depends on what a prompt teaches about others:

- ``skills``: 1,024 prompts of twenty levels; who learns to reverse three letters has learned something about four.
- ``keys``: 400 arbitrary keys with arbitrary answers. Nothing transfers, half of them start near success rate 0, and
  the model forgets what it does not practise.
- ``tail``: 17,000 prompts, most of them solved or hopeless, some of them keys; a prompt is met once an epoch, as in the
  paper, so whatever is believed of it is an epoch old.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from knapsack_rl.tasks import embedded
from knapsack_rl.tasks.cache import cached_folder
from knapsack_rl.tasks.recipe import Progress, Recipe

KEY_MARK = "k"
KEY_LETTERS, RIGHT_LETTERS, WRONG_LETTERS = "abcdefghij", "klmnop", "qrstuv"
# Chance of the right answer in the warm start's data, by the level of a key.
RIGHT_BY_KEY_LEVEL = (0.9, 0.35, 0.08, 0.02)
CHARACTERS = "".join(sorted(set(embedded.CHARACTERS + KEY_MARK + KEY_LETTERS + RIGHT_LETTERS + WRONG_LETTERS)))

# Draws so many prompts, each with what the base model is taught to answer, rightly or not.
Teacher: TypeAlias = Callable[[random.Random, int], list[tuple[str, str]]]


@dataclass(frozen=True)
class Item:
    """One prompt.

    Attributes:
        prompt, answer: texts; the prompt is its own id.
        source: the family and level it comes from.
    """

    prompt: str
    answer: str
    source: str


@dataclass(frozen=True, eq=False)
class Regime:
    """A data set, its base model, and how a run on it is set up.

    Attributes:
        name: what reports call it.
        train: prompts to train on.
        heldout: prompts to measure on; the training ones where nothing transfers.
        teacher: what the base model is taught.
        recipe: size of the base model and length of its warm start.
        groups, num_generations: prompts of a step and rollouts of each on average.
        steps: steps of a run that spends its budget evenly.
        learning_rate: of GRPO.
        longest: tokens of the longest answer, end of sequence included, and a little more.
    """

    name: str
    train: tuple[Item, ...]
    heldout: tuple[Item, ...]
    teacher: Teacher
    recipe: Recipe
    groups: int = 32
    num_generations: int = 8
    steps: int = 150
    learning_rate: float = 2e-4
    longest: int = 8

    def base_model(self, progress: Progress | None = None) -> Path:
        """The folder of the base model, made now if the cache has none."""
        content = [self.name, self.recipe.key, CHARACTERS, [(item.prompt, item.answer) for item in self.train[:400]]]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

        def build(folder: Path) -> None:
            from knapsack_rl.tasks.tiny_model import build_warm_started

            build_warm_started(self.recipe, folder, progress, self.teacher, CHARACTERS)

        return cached_folder(f"lab-{self.name}-{key}", build)


def skills(prompts: int = 1024, heldout: int = 500) -> Regime:
    """Skills shared by many prompts."""
    train, held = embedded.splits(prompts, heldout, seed=7)
    return Regime("skills", _items(train), _items(held), embedded.taught, Recipe(steps=300, batch=128))


def keys(prompts: int = 400) -> Regime:
    """Facts that share nothing."""
    items = _keys(prompts, seed=5)
    return Regime("keys", items, items, _key_teacher(items), Recipe(steps=900, batch=128), longest=4)


def tail(prompts: int = 17_000, heldout: int = 500) -> Regime:
    """Many prompts, most of them solved or hopeless; one in twenty is a key."""
    from_keys = _keys(prompts // 20, seed=6)
    train, held = embedded.splits(prompts - len(from_keys), heldout, seed=8)
    teach_key = _key_teacher(from_keys)

    def teacher(rng: random.Random, count: int) -> list[tuple[str, str]]:
        of_keys = count * 3 // 10
        return teach_key(rng, of_keys) + embedded.taught(rng, count - of_keys)

    items = [*_items(train), *from_keys]
    random.Random(9).shuffle(items)
    recipe = Recipe(steps=600, batch=128)
    return Regime("tail", tuple(items), _items(held), teacher, recipe, groups=128, num_generations=4, steps=270)


REGIMES: Mapping[str, Callable[[], Regime]] = {"skills": skills, "keys": keys, "tail": tail}


def _items(rows: Sequence[embedded.Row]) -> tuple[Item, ...]:
    return tuple(Item(row["prompt"], row["answer"], row["family"]) for row in rows)


def _keys(count: int, seed: int) -> tuple[Item, ...]:
    """Different keys of four letters, each with a right answer of two; its level stands in its source."""
    rng = random.Random(seed)
    drawn: set[str] = set()
    while len(drawn) < count:
        drawn.add("".join(rng.choices(KEY_LETTERS, k=4)))
    levels = range(len(RIGHT_BY_KEY_LEVEL))
    return tuple(
        Item(f"{KEY_MARK}:{key}=", "".join(rng.choices(RIGHT_LETTERS, k=2)), f"key-{rng.choice(levels)}")
        for key in sorted(drawn)
    )


def _key_teacher(items: Sequence[Item]) -> Teacher:
    """Right answers as often as a key's level has it; else one wrong answer, always the same for a key."""

    def taught(rng: random.Random) -> tuple[str, str]:
        item = rng.choice(items)
        right = rng.random() < RIGHT_BY_KEY_LEVEL[int(item.source.rpartition("-")[2])]
        wrong = random.Random(item.prompt)
        return item.prompt, item.answer if right else "".join(wrong.choices(WRONG_LETTERS, k=2))

    return lambda rng, count: [taught(rng) for _ in range(count)]
