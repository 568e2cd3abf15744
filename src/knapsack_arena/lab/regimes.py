"""Tasks with one right answer each, and base models that solve them sometimes.

Three regimes, because the gain of a rule depends on what prompts share:

- ``skills``: 1,024 prompts in five families of four levels; training on one prompt of a family improves others.
- ``keys``: 400 arbitrary keys with arbitrary answers. Nothing transfers, half of them start near success rate 0, and
  the model forgets keys that are not practised.
- ``tail``: 17,000 prompts, most of them solved or hopeless, some of them keys; a prompt is offered once an epoch, as in
  the paper, so beliefs about it are an epoch old.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from knapsack_rl.tasks import embedded
from knapsack_rl.tasks.cache import cached_folder
from knapsack_rl.tasks.recipe import Progress, Recipe, Teacher

KEY_MARK = "k"
KEY_LETTERS, RIGHT_LETTERS, WRONG_LETTERS = "abcdefghij", "klmnop", "qrstuv"
# Chance of the right answer in the warm start's data, by the level of a key.
RIGHT_BY_KEY_LEVEL = (0.9, 0.35, 0.08, 0.02)
CHARACTERS = "".join(sorted(set(embedded.CHARACTERS + KEY_MARK + KEY_LETTERS + RIGHT_LETTERS + WRONG_LETTERS)))


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
    """A data set, its base model, and the settings of a run.

    Attributes:
        name: in reports.
        train: prompts to train on.
        heldout: prompts to measure on; the training prompts where nothing transfers.
        teacher: draws the data of the warm start.
        recipe: size of the base model and length of its warm start.
        groups, average: prompts per step under equal division, and rollouts per prompt on average.
        steps: steps of a run under equal division.
        learning_rate: of GRPO.
        longest: most tokens of an answer, end of sequence included.
    """

    name: str
    train: tuple[Item, ...]
    heldout: tuple[Item, ...]
    teacher: Teacher
    recipe: Recipe
    groups: int = 32
    average: int = 8
    steps: int = 150
    learning_rate: float = 2e-4
    longest: int = 8

    def base_model(self, progress: Progress | None = None) -> Path:
        """The folder of the base model, built now if the cache has none."""
        content = [self.name, self.recipe.key, CHARACTERS, [(item.prompt, item.answer) for item in self.train[:400]]]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

        def build(folder: Path) -> None:
            from knapsack_rl.tasks.tiny_model import build_warm_started

            build_warm_started(self.recipe, folder, progress, self.teacher, CHARACTERS)

        return cached_folder(f"lab-{self.name}-{key}", build)


def skills(prompts: int = 1024, heldout: int = 500) -> Regime:
    """Prompts that share skills."""
    train, held = embedded.splits(prompts, heldout, seed=7)
    return Regime("skills", _items(train), _items(held), embedded.taught, Recipe(steps=300, batch=128))


def keys(prompts: int = 400) -> Regime:
    """Arbitrary facts that share nothing."""
    items = _keys(prompts, seed=5)
    return Regime("keys", items, items, _key_teacher(items), Recipe(steps=900, batch=128), longest=4)


def tail(prompts: int = 17_000, heldout: int = 500) -> Regime:
    """17,000 prompts, most of them solved or hopeless; one in twenty is a key."""
    from_keys = _keys(prompts // 20, seed=6)
    train, held = embedded.splits(prompts - len(from_keys), heldout, seed=8)
    teach_key = _key_teacher(from_keys)

    def teacher(rng: random.Random, count: int) -> list[tuple[str, str]]:
        of_keys = count * 3 // 10
        return teach_key(rng, of_keys) + embedded.taught(rng, count - of_keys)

    items = [*_items(train), *from_keys]
    random.Random(9).shuffle(items)
    recipe = Recipe(steps=600, batch=128)
    return Regime("tail", tuple(items), _items(held), teacher, recipe, groups=128, average=4, steps=270)


REGIMES: Mapping[str, Callable[[], Regime]] = {"skills": skills, "keys": keys, "tail": tail}


def _items(rows: Sequence[embedded.Row]) -> tuple[Item, ...]:
    return tuple(Item(row["prompt"], row["answer"], row["family"]) for row in rows)


def _keys(count: int, seed: int) -> tuple[Item, ...]:
    """Distinct keys of four letters, each with a right answer of two; its source names its level."""
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
    """Right answers with the probability of a key's level; else a wrong answer, the same each time for a key."""

    def taught(rng: random.Random) -> tuple[str, str]:
        item = rng.choice(items)
        right = rng.random() < RIGHT_BY_KEY_LEVEL[int(item.source.rpartition("-")[2])]
        wrong = random.Random(item.prompt)
        return item.prompt, item.answer if right else "".join(wrong.choices(WRONG_LETTERS, k=2))

    return lambda rng, count: [taught(rng) for _ in range(count)]
