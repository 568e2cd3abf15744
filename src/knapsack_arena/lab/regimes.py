"""Tasks with one right answer each, and base models that solve them sometimes.

Six regimes, because the gain of a rule depends on what prompts share and how hard they are:

- ``skills``: 1,024 prompts in five families of four levels; training on one prompt of a family improves others.
- ``keys``: 400 arbitrary keys with arbitrary answers. Nothing transfers, half of them start near success rate 0, and
  the model forgets keys that are not practised.
- ``tail``: 17,000 prompts, most of them solved or hopeless, some of them keys; a prompt is offered once an epoch, as in
  the paper, so beliefs about it are an epoch old.
- ``long``: answers of 21 to 57 tokens, many of them right, judged by a program (`knapsack_arena.lab.long_answers`). Two
  thirds of the prompts start between .05 and .95, a tenth near 0.
- ``hopeless``: the same task and base model, and seven of ten prompts start below .05.
- ``smollm2``: SmolLM2-135M-Instruct, a pretrained model of useful size, on arithmetic with short answers
  (`knapsack_arena.lab.short_answers`).

Every regime has numbered instances (``keys/1``): another base model and other prompts of the same kind.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from knapsack_arena.lab import long_answers, short_answers
from knapsack_arena.lab.long_answers import Verifier
from knapsack_rl.tasks import embedded
from knapsack_rl.tasks.cache import cached_folder
from knapsack_rl.tasks.recipe import Progress, Recipe, Teacher

KEY_MARK = "k"
KEY_LETTERS, RIGHT_LETTERS, WRONG_LETTERS = "abcdefghij", "klmnop", "qrstuv"
# Chance of the right answer in the warm start's data, by the level of a key.
RIGHT_BY_KEY_LEVEL = (0.9, 0.35, 0.08, 0.02)
# Bounds of the chances of demonstrators, and the share of a regime's prompts in each interval.
CHANCES = (0.0, 0.01, 0.05, 0.3, 0.6, 1.0)
LONG_SHARES = (0.08, 0.08, 0.34, 0.25, 0.25)
HOPELESS_SHARES = (0.25, 0.45, 0.2, 0.07, 0.03)
# Training and held-out prompts of both regimes with long answers.
WALKS_TRAIN, WALKS_HELDOUT = 512, 256
LONG_STEPS = 600
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
        verify: judges answers; None where each prompt has one right answer.
        samples: rollouts per prompt from which success rates are estimated where answers are judged.
        characters: of the model's tokenizer.
        family: regimes of one family share a base model; the name by default.
        pretrained: name of the model that the warm start begins with (`knapsack_rl.tasks.models.model_path`); by
            default it begins with random weights.
        followed: most training prompts whose success rates are measured along a run.
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
    verify: Verifier | None = None
    samples: int = 4
    characters: str = CHARACTERS
    family: str = ""
    pretrained: str = ""
    followed: int = 500

    def base_model(self, progress: Progress | None = None) -> Path:
        """The folder of the base model, built now if the cache has none."""
        family = self.family or self.name
        prompts = [(item.prompt, item.answer) for item in self.train[:400]] if not self.family else []
        content = [family, self.recipe.key, self.pretrained or self.characters, prompts]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

        def build(folder: Path) -> None:
            if self.pretrained:
                from knapsack_arena.lab.wide_policy import build_from_pretrained

                return build_from_pretrained(self.pretrained, self.recipe, folder, progress, self.teacher)
            from knapsack_rl.tasks.tiny_model import build_warm_started

            build_warm_started(self.recipe, folder, progress, self.teacher, self.characters)

        return cached_folder(f"lab-{family.replace('/', '-')}-{key}", build)


def skills(prompts: int = 1024, heldout: int = 500, instance: int = 0) -> Regime:
    """Prompts that share skills."""
    train, held = embedded.splits(prompts, heldout, seed=_seed(7, instance))
    recipe = Recipe(steps=300, batch=128, seed=instance)
    return Regime(_name("skills", instance), _items(train), _items(held), embedded.taught, recipe)


def keys(prompts: int = 400, instance: int = 0) -> Regime:
    """Arbitrary facts that share nothing."""
    items = _keys(prompts, seed=_seed(5, instance))
    recipe = Recipe(steps=900, batch=128, seed=instance)
    return Regime(_name("keys", instance), items, items, _key_teacher(items), recipe, longest=4)


def tail(prompts: int = 17_000, heldout: int = 500, instance: int = 0) -> Regime:
    """17,000 prompts, most of them solved or hopeless; one in twenty is a key."""
    from_keys = _keys(prompts // 20, seed=_seed(6, instance))
    train, held = embedded.splits(prompts - len(from_keys), heldout, seed=_seed(8, instance))
    teach_key = _key_teacher(from_keys)

    def teacher(rng: random.Random, count: int) -> list[tuple[str, str]]:
        of_keys = count * 3 // 10
        return teach_key(rng, of_keys) + embedded.taught(rng, count - of_keys)

    items = [*_items(train), *from_keys]
    random.Random(_seed(9, instance)).shuffle(items)
    recipe = Recipe(steps=600, batch=128, seed=instance)
    name = _name("tail", instance)
    return Regime(name, tuple(items), _items(held), teacher, recipe, groups=128, average=4, steps=270)


def long(prompts: int = WALKS_TRAIN, heldout: int = WALKS_HELDOUT, instance: int = 0) -> Regime:
    """Long answers, many of them right."""
    return _walks("long", instance, prompts, heldout, LONG_SHARES)


def hopeless(prompts: int = WALKS_TRAIN, heldout: int = WALKS_HELDOUT, instance: int = 0) -> Regime:
    """Long answers, most of them out of reach at the start."""
    return _walks("hopeless", instance, prompts, heldout, HOPELESS_SHARES)


def smollm2(prompts: int = 400, heldout: int = 150, instance: int = 0) -> Regime:
    """Short answers of a pretrained language model; needs the packages ``reasoning-gym`` and that of SmolLM2.

    Every weight is trained. Sizes are for one core of 2.6 GHz with products in bfloat16: a step of uniform takes about
    4 seconds, the looks at a pool of four 1.4, the exact rates of 300 prompts 8, and a run, measurements included, 8
    minutes. The supervised start takes 2.5 minutes; after it the mean rate is .19, 64 % of the prompts are between .05
    and .95, 35 % below .05 and 21 % below .01.
    """
    parts = short_answers.problems((prompts, heldout, 1500), _seed(3, instance))
    train, held, taught = (
        [Item(short_answers.question(each), each.answer, each.source) for each in part] for part in parts
    )

    def teacher(rng: random.Random, count: int) -> list[tuple[str, str]]:
        return [(item.prompt, item.answer) for item in rng.choices(taught, k=count)]

    return Regime(
        _name("smollm2", instance),
        tuple(train),
        tuple(held),
        teacher,
        Recipe(steps=64, batch=16, learning_rate=1e-4, seed=instance),
        groups=16,
        steps=80,
        learning_rate=3e-5,
        longest=short_answers.LONGEST,
        pretrained="smollm2",
        followed=100,
    )


REGIMES: Mapping[str, Callable[..., Regime]] = {
    "skills": skills, "keys": keys, "tail": tail, "long": long, "hopeless": hopeless,
    "smollm2": smollm2,
}  # fmt: skip


def _walks(name: str, instance: int, prompts: int, heldout: int, shares: Sequence[float]) -> Regime:
    """Prompts of the task of walks, with these shares of demonstrators' chances between `CHANCES`."""
    seed, task = _task_of_walks(instance)
    drawn = task.prompts(prompts + heldout, _seed(3, instance), CHANCES, shares)
    items = tuple(Item(prompt, "", f"mode-{prompt[0]}") for prompt in drawn)
    return Regime(
        _name(name, instance),
        items[:prompts],
        items[prompts:],
        task.teach,
        Recipe(steps=LONG_STEPS, batch=64, seed=instance),
        steps=60,
        learning_rate=3e-4,
        longest=long_answers.TOKENS_PER_STEP * max(long_answers.STEPS) + 1,
        verify=task.verify,
        characters=long_answers.CHARACTERS,
        family=_name("walks", seed),
    )


def _task_of_walks(instance: int) -> tuple[int, long_answers.Walks]:
    """The task of an instance of both regimes with long answers, and its seed.

    Many a task has too few prompts in some interval of `CHANCES`; another is drawn in its place.
    """
    seed = instance
    while True:
        task = long_answers.walks(seed)
        try:
            task.prompts(WALKS_TRAIN + WALKS_HELDOUT, 0, CHANCES, LONG_SHARES)
            task.prompts(WALKS_TRAIN + WALKS_HELDOUT, 0, CHANCES, HOPELESS_SHARES)
        except ValueError:
            seed += 1000
        else:
            return seed, task


def _name(name: str, instance: int) -> str:
    return f"{name}/{instance}" if instance else name


def _seed(seed: int, instance: int) -> int:
    return seed + 100 * instance


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
