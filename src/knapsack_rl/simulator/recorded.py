"""A population that resembles recorded data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.simulator.population import Population, logit
from knapsack_rl.simulator.presets import HELD_OUT, draw_rest


def fit_population(outcomes: Iterable[Outcomes], seed: int = 0) -> Population:
    """A population like the one that these outcomes came from.

    Success rates are drawn from their Beta posteriors, under the Beta prior that fits all prompts together by the
    method of moments: a prompt solved in 0 of 8 tries is not impossible. A trace gives
    ``step.outcomes for step in read_trace(path).steps``; for the start of a run pass only its first epoch.

    Raises:
        ValueError: no outcomes with an answer.
    """
    totals = _totals(outcomes)
    if not totals:
        raise ValueError("there is no answered rollout to fit a population to")
    prompt_ids = tuple(totals)
    attempts_P, successes_P = np.array(list(totals.values()), dtype=np.int64).T
    rng = np.random.default_rng(seed)
    alpha, beta = fit_beta(attempts_P, successes_P)
    logits_P = logit(rng.beta(alpha + successes_P, beta + attempts_P - successes_P))
    return draw_rest(prompt_ids, logits_P, rng, logit(rng.beta(alpha, beta, HELD_OUT)))


def fit_beta(attempts_P: IntArray, successes_P: IntArray) -> tuple[float, float]:
    """The Beta distribution of success rates, by the method of moments of the observed ones.

    The observed variance is ``v + (m (1-m) - v) E[1/n]`` where v is that of the true rates.
    """
    observed_P: FloatArray = successes_P / attempts_P
    mean = float(np.clip(observed_P.mean(), 1e-3, 1 - 1e-3))
    most = mean * (1 - mean)
    blur = float((1 / attempts_P).mean())
    spread = (float(((observed_P - mean) ** 2).mean()) - most * blur) / max(1 - blur, 1e-9)
    strength = most / float(np.clip(spread, 0.01 * most, 0.95 * most)) - 1
    return mean * strength, (1 - mean) * strength


def _totals(outcomes: Iterable[Outcomes]) -> dict[str, tuple[int, int]]:
    """Attempts and successes by prompt."""
    totals: dict[str, tuple[int, int]] = {}
    for one in outcomes:
        for prompt_id, attempts, successes in zip(
            one.prompt_ids, one.attempts_P.tolist(), one.successes_P.tolist(), strict=True
        ):
            if attempts:
                before = totals.get(prompt_id, (0, 0))
                totals[prompt_id] = (before[0] + attempts, before[1] + successes)
    return totals
