"""Populations by name: what a data set looks like to a policy before or late in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import FloatArray
from knapsack_rl.simulator.population import MOST_LOGIT, Population, logit, sigmoid

SKILLS = 16
HELD_OUT = 1024


@dataclass(frozen=True)
class Difficulty:
    """How success rates are spread: Beta(successes, failures), except for a share that is as good as impossible."""

    successes: float
    failures: float
    impossible: float = 0.0


DIFFICULTIES: Mapping[str, Difficulty] = {
    "easy": Difficulty(1.2, 0.5, 0.02),
    "balanced": Difficulty(0.5, 0.5, 0.0),
    "hard": Difficulty(0.3, 0.7, 0.0),
    "late": Difficulty(0.6, 0.3, 0.0),
}


def make_population(difficulty: Difficulty, prompts: int, seed: int) -> Population:
    """A population of this difficulty; a pure function of its arguments.

    Raises:
        ValueError: fewer than one prompt.
    """
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}: a population needs at least one prompt")
    rng = np.random.default_rng([seed, prompts])
    logits_P = _logits(difficulty, prompts, rng)
    return draw_rest(tuple(f"q{row:06d}" for row in range(prompts)), logits_P, rng, _logits(difficulty, HELD_OUT, rng))


def draw_rest(
    prompt_ids: tuple[str, ...], logits_P: FloatArray, rng: np.random.Generator, held_out_logits_H: FloatArray
) -> Population:
    """Draw what success rates do not say: loadings, and lengths that grow with difficulty."""
    rates_P = sigmoid(logits_P)
    return Population(
        prompt_ids=prompt_ids,
        logits_P=logits_P,
        loadings_PK=_loadings(logits_P.size, rng),
        log_tokens_P=np.log(500.0) + 0.9 * (1 - rates_P) + 0.3 * rng.standard_normal(logits_P.size),
        held_out_logits_H=held_out_logits_H,
        held_out_loadings_HK=_loadings(held_out_logits_H.size, rng),
    )


def _logits(difficulty: Difficulty, size: int, rng: np.random.Generator) -> FloatArray:
    logits = logit(rng.beta(difficulty.successes, difficulty.failures, size))
    return np.where(rng.random(size) < difficulty.impossible, -MOST_LOGIT, logits)


def _loadings(size: int, rng: np.random.Generator) -> FloatArray:
    """Every skill helps on average, and some prompts more than others; rows have a length of about 1."""
    loadings: FloatArray = (0.5 + rng.standard_normal((size, SKILLS))) / np.sqrt(1.25 * SKILLS)
    return loadings


def _preset(name: str) -> Callable[[int, int], Population]:
    return lambda prompts, seed: make_population(DIFFICULTIES[name], prompts, seed)


PRESETS: Mapping[str, Callable[[int, int], Population]] = {name: _preset(name) for name in DIFFICULTIES}
