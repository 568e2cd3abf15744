"""The recipe of the embedded base model: size, warm start and hash. Imports no framework."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeAlias

from knapsack_rl.tasks import embedded

# Raise it when tiny_model.py makes other weights from the same recipe.
RECIPE_VERSION = 1
# Called with (steps done, steps in all).
Progress: TypeAlias = Callable[[int, int], None]
# Draws a number of (prompt, answer) pairs for the warm start; answers may be wrong.
Teacher: TypeAlias = Callable[[random.Random, int], list[tuple[str, str]]]


@dataclass(frozen=True)
class Recipe:
    """Size of a model and length of its warm start; the defaults are the base model of the main job.

    Attributes:
        hidden, layers, heads, intermediate: size of the Llama model.
        steps: supervised steps.
        batch: questions per step.
        learning_rate: peak of a cosine schedule with a short warm-up.
        seed: of the initial weights and the questions.
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
        """A short hash of everything that determines the weights, apart from the machine's arithmetic."""
        content = {**asdict(self), "version": RECIPE_VERSION, "characters": embedded.CHARACTERS}
        content["levels"] = [f"{family.name}-{family.lengths[level]}" for family, level in embedded.LEVELS]
        content["right"] = embedded.RIGHT_BY_LEVEL
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
