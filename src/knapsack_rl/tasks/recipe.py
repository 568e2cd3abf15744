"""What the embedded base model is made from, and where it is kept. Imports no framework, so asking is quick."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from knapsack_rl.tasks import embedded
from knapsack_rl.tasks.cache import cached_folder

# Raise it when the code in tiny_model.py changes what a recipe makes; a recipe's own fields are hashed anyway.
RECIPE_VERSION = 1
# Called with (steps done, steps in all).
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """Size of the model and length of its warm start; the defaults are the base model of the main job.

    Attributes:
        hidden, layers, heads, intermediate: the Llama's size.
        steps: supervised steps.
        batch: questions per step.
        learning_rate: peak of a cosine with a short rise.
        seed: initial weights and questions.
    """

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    intermediate: int = 384
    steps: int = 300
    batch: int = 64
    learning_rate: float = 3e-3
    seed: int = 0

    @property
    def key(self) -> str:
        """A short hash of everything that decides the weights, up to the machine's arithmetic."""
        content = {**asdict(self), "version": RECIPE_VERSION, "characters": embedded.CHARACTERS}
        content["levels"] = [f"{family.name}-{family.lengths[level]}" for family, level in embedded.LEVELS]
        content["right"] = embedded.RIGHT_BY_LEVEL
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def warm_started(recipe: Recipe | None = None, progress: Progress | None = None) -> Path:
    """The folder of the warm-started model and its tokenizer, trained now if the cache has none.

    Args:
        recipe: what to make; the main job's base model by default.
        progress: called while training.
    """
    recipe = recipe or Recipe()

    def build(folder: Path) -> None:
        from knapsack_rl.tasks.tiny_model import build_warm_started

        build_warm_started(recipe, folder, progress)

    return cached_folder(f"embedded-{recipe.key}", build)
