"""Populations by name: success rates of a data set before training, or late in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from knapsack_arena.simulator.population import MOST_LOGIT, Population, logit
from knapsack_rl.notation import FloatArray

SKILLS = 16
HELD_OUT = 1024
# The mean of a loading in units of its standard deviation: the part of a gain that helps all prompts.
COMMON = 0.3


@dataclass(frozen=True)
class Difficulty:
    """Distribution of success rates: Beta(successes, failures), and a share of impossible prompts."""

    successes: float
    failures: float
    impossible: float


# In balanced, hard and late one prompt in ten is impossible (a wrong reference answer, say), and the Beta distributions
# share their first parameter; the second is set by the share of mixed groups of 8: .60, .48, .45 (docs/simulator.md).
DIFFICULTIES: Mapping[str, Difficulty] = {
    "easy": Difficulty(2.0, 0.7, 0.02),
    "balanced": Difficulty(0.6, 0.6, 0.1),
    "hard": Difficulty(0.6, 3.2, 0.1),
    "late": Difficulty(0.6, 0.27, 0.1),
}


def make_population(difficulty: Difficulty, prompts: int, seed: int) -> Population:
    """A population of this difficulty, with `HELD_OUT` held-out prompts; a pure function of its arguments.

    Raises:
        ValueError: fewer than one prompt, or a negative seed.
    """
    if prompts < 1 or seed < 0:
        raise ValueError(f"{prompts} prompts with seed {seed}: a population needs a prompt, and a seed of at least 0")
    rng = np.random.default_rng([seed, prompts])
    rates_P, held_out_H = _rates(difficulty, prompts, rng), _rates(difficulty, HELD_OUT, rng)
    return Population(
        prompt_ids=tuple([f"q{row:06d}" for row in range(prompts)]),
        logits_P=logit(rates_P),
        loadings_PK=make_loadings(prompts, rng),
        log_tokens_P=median_lengths(rates_P, rng),
        held_out_logits_H=logit(held_out_H),
        held_out_loadings_HK=make_loadings(HELD_OUT, rng),
    )


PRESETS: Mapping[str, Callable[[int, int], Population]] = {
    name: partial(make_population, difficulty) for name, difficulty in DIFFICULTIES.items()
}


def make_loadings(size: int, rng: np.random.Generator) -> FloatArray:
    """Loadings with a positive mean and both signs; rows have a length of about 1.

    Returns:
        ``[size, SKILLS]``.
    """
    loadings: FloatArray = (COMMON + rng.standard_normal((size, SKILLS))) / np.sqrt((1 + COMMON**2) * SKILLS)
    return loadings


def median_lengths(rates_P: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Logarithms of median lengths: 500 tokens at a rate of 1, 1,200 at 0, with a standard deviation of 0.3."""
    lengths: FloatArray = np.log(500.0) + 0.9 * (1 - rates_P) + 0.3 * rng.standard_normal(rates_P.size)
    return lengths


def _rates(difficulty: Difficulty, size: int, rng: np.random.Generator) -> FloatArray:
    rates = rng.beta(difficulty.successes, difficulty.failures, size)
    never = 1 / (1 + np.exp(MOST_LOGIT))
    return np.where(rng.random(size) < difficulty.impossible, never, rates)
