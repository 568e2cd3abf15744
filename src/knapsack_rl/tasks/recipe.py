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

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: one that no model can have; the message names it.
        """
        for name, value in asdict(self).items():
            if name == "learning_rate":
                fits, wanted = isinstance(value, int | float) and 0 < value < float("inf"), "a positive number"
            else:
                least = 0 if name in ("steps", "seed") else 1
                fits, wanted = isinstance(value, int) and value >= least, f"a whole number of at least {least}"
            if not fits or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}: it must be {wanted}")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden is {self.hidden}: it must be a multiple of twice the heads ({self.heads})")

    @property
    def key(self) -> str:
        """A short hash of everything that determines the weights, apart from the machine's arithmetic."""
        content = {**asdict(self), "version": RECIPE_VERSION, "characters": embedded.CHARACTERS}
        content["levels"] = [f"{family.name}-{family.lengths[level]}" for family, level in embedded.LEVELS]
        content["right"] = embedded.RIGHT_BY_LEVEL
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
