"""How far beliefs are from the truth on a language model whose success rates are known exactly.

One run of the laboratory, planned by our default rule over a pool; beside it every belief watches the same outcomes and
says, before each step, what it expects of the same candidates. So the beliefs differ in nothing but what they make of
what they saw.

    python -m benchmarks.forecasts [--regimes skills,keys,tail] [--seeds 1] [--first-seed 0] [--steps N] [--ablation]

Columns: mean squared error of the expected against the true success rate, and the same as a share of the paper's
estimator; the log score of the true rate under the Beta belief (higher is better); and the share of the value of the
best plan, made with true rates from the same candidates, that a plan made with the belief would have had: of the pool
that was offered, where prompts may be left out, and of the first quarter of it, where each gets at least two.

Each figure is a mean over seeds with a 95 % interval. With ``--ablation``, each ingredient of the calibrated belief is
taken away in turn.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from knapsack_rl.allocator import KnapsackAllocator, expected_value
from knapsack_rl.beliefs import Beliefs, Forecast, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.calibrated import CalibratedBeliefs, Features, Look
from knapsack_rl.compare.ranking import estimate
from knapsack_rl.lab.regimes import REGIMES, Regime
from knapsack_rl.lab.world import LanguageModelWorld
from knapsack_rl.limits import same_limits
from knapsack_rl.logistic import Concentration
from knapsack_rl.notation import FloatArray
from knapsack_rl.solver import solve
from knapsack_rl.strategy import OneRound, Request, play
from knapsack_rl.text_features import TextFeatures
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals, knapsack_value

POOL, MOST = 4, 64
HALF_LIVES = {"skills": 40.0, "keys": 40.0, "tail": 530.0}
# The first steps know nothing yet, whatever the belief.
SKIPPED, PLANNED_EVERY = 15, 5
# Places of the signals in `CalibratedBeliefs`.
WEIGHED_LOOK, OWN_COUNTS = (2,), (3,)
# How the last group ended, alone and times each of the two measures of confidence; and all of confidence.
LAST_RESULTS, CONFIDENCE = (4, 5, 6, 8, 9, 10, 12, 13, 14), (7, 8, 9, 10, 11, 12, 13, 14)
CONFIDENCE_BY_RESULT = (8, 9, 10, 12, 13, 14)


def watchers(world: LanguageModelWorld, half_life: float) -> Mapping[str, Beliefs]:
    """The beliefs that are compared."""
    text = TextFeatures()
    text.remember(world.prompt_ids, world.prompt_ids)  # a prompt is its own id
    return {
        "paper": PaperBeliefs(),
        "posterior": PosteriorBeliefs(half_life),
        "calibrated": CalibratedBeliefs(half_life),
        "calibrated, text": CalibratedBeliefs(half_life, text),
        "calibrated, confidence": CalibratedBeliefs(half_life, Confidence(world)),
        "calibrated, hidden states and confidence": CalibratedBeliefs(half_life, world.hidden_states),
    }


def ablations(world: LanguageModelWorld, half_life: float) -> Mapping[str, Beliefs]:
    """The calibrated belief with hidden states, less one ingredient each."""
    whole = CalibratedBeliefs(half_life, world.hidden_states)
    unsure = CalibratedBeliefs(half_life, world.hidden_states)
    unsure.concentration = FixedStrength()
    return {
        "paper": PaperBeliefs(),
        "all of it": whole,
        "- hidden states": CalibratedBeliefs(half_life, Confidence(world)),
        "- confidence": Without(CONFIDENCE, half_life, world.hidden_states),
        "- both": CalibratedBeliefs(half_life),
        "- confidence's dependence on the last group": Without(CONFIDENCE_BY_RESULT, half_life, world.hidden_states),
        "- own counts": Without(OWN_COUNTS, half_life, world.hidden_states),
        "- how the last group ended": Without(LAST_RESULTS, half_life, world.hidden_states),
        "- weight of evidence": Without(WEIGHED_LOOK, half_life, world.hidden_states),
        "- learned strength (4 always)": unsure,
    }


class Without(CalibratedBeliefs):
    """Calibrated beliefs that are told nothing by some of their signals."""

    def __init__(self, signals: Sequence[int], half_life: float, features: Features | None) -> None:
        super().__init__(half_life, features)
        self.silent = list(signals)

    def _signals(self, prompt_ids: Sequence[str], counts: Forecast, look: Look) -> tuple[FloatArray, FloatArray]:
        signals_P_S, evidence_P = super()._signals(prompt_ids, counts, look)
        signals_P_S[:, self.silent] = 0
        return signals_P_S, evidence_P


class Confidence:
    """How sure the policy is of its next token, without the hidden states."""

    def __init__(self, world: LanguageModelWorld) -> None:
        self.world = world

    def __call__(self, prompt_ids: Sequence[str]) -> Look:
        """Of prompts as they are now."""
        return Look(np.ones((len(prompt_ids), 1)), self.world.hidden_states(prompt_ids).confidence_P_C)


class FixedStrength(Concentration):
    """Every belief as strong as four rollouts."""

    def __init__(self) -> None:
        super().__init__(discount=1.0)

    def learn(self, *outcomes: object) -> None:
        """Nothing: the record stays empty."""


def watch(
    regime: Regime,
    seed: int,
    steps: int,
    watched: Callable[[LanguageModelWorld, float], Mapping[str, Beliefs]] = watchers,
) -> dict[str, FloatArray]:
    """Mean over the steps of each belief's four measures."""
    world = LanguageModelWorld(regime, seed)
    half_life = HALF_LIVES[regime.name]
    leader = OneRound(KnapsackAllocator(PosteriorBeliefs(half_life), expected_value, 0, MOST), POOL)
    beliefs = watched(world, half_life)
    budget = regime.groups * regime.num_generations
    found: dict[str, list[list[float]]] = {name: [] for name in beliefs}
    for step in range(steps):
        candidates: list[str] = []
        played = play(leader, Request(step, regime.groups, budget, _noting(world.take, candidates)), world.generate)
        true_P = world.success_rates(candidates)
        for name, belief in beliefs.items():
            forecast = belief.forecast(candidates, step)
            if step >= SKIPPED:
                error = float(np.mean((forecast.success_rates_P - true_P) ** 2))
                shares = [math.nan, math.nan]
                if step % PLANNED_EVERY == 0:
                    shares = [
                        value_share(forecast, true_P, budget, least=0),
                        value_share(first(forecast, regime.groups), true_P[: regime.groups], budget, least=2),
                    ]
                found[name].append([error, log_score(forecast, true_P), *shares])
            belief.observe(played.batch.outcomes)
        world.train(played.batch)
    return {name: np.nanmean(np.array(rows), axis=0) for name, rows in found.items()}


def first(forecast: Forecast, count: int) -> Forecast:
    """The forecast of the first so many candidates: the batch that a trainer without a pool would have had."""
    parts = (forecast.success_rates_P, forecast.strength_P, forecast.seen_P, forecast.tokens_P)
    return Forecast(*(part[:count] for part in parts))


def value_share(forecast: Forecast, true_P: FloatArray, budget: int, least: int) -> float:
    """True value of the plan by the belief, as a share of that of the plan by the truth."""
    alpha_P, beta_P = np.maximum(forecast.alpha_P, 1e-3), np.maximum(forecast.beta_P, 1e-3)
    limits = same_limits(true_P.size, least, MOST)
    by_belief = solve(lambda rows, n: expected_knapsack_marginals(alpha_P[rows], beta_P[rows], n), budget, *limits)
    by_truth = solve(lambda rows, n: knapsack_marginals(true_P[rows], n), budget, *limits)
    value_P_N = knapsack_value(true_P, MOST)
    rows = np.arange(true_P.size)
    return float(value_P_N[rows, by_belief.counts_P].sum() / value_P_N[rows, by_truth.counts_P].sum())


def log_score(forecast: Forecast, true_P: FloatArray) -> float:
    """Mean log density of the true rates, kept within 0.0001 of 0 and 1, under the Beta beliefs."""
    p = np.clip(true_P, 1e-4, 1 - 1e-4)
    density = [
        (a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
        for x, a, b in zip(p, np.maximum(forecast.alpha_P, 1e-3), np.maximum(forecast.beta_P, 1e-3), strict=True)
    ]
    return float(np.mean(density))


def _noting(take: Callable[[int], tuple[str, ...]], taken: list[str]) -> Callable[[int], tuple[str, ...]]:
    def noted(count: int) -> tuple[str, ...]:
        ids = take(count)
        taken.extend(ids)
        return ids

    return noted


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each regime."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="How far beliefs are from the truth.")
    parser.add_argument("--regimes", default="skills,keys,tail")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="of each run; the regime's own by default")
    parser.add_argument("--ablation", action="store_true", help="take each ingredient away in turn")
    given = parser.parse_args(words)
    watched = ablations if given.ablation else watchers
    for name in given.regimes.split(","):
        regime = REGIMES[name]()
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        runs = [watch(regime, seed, given.steps or regime.steps, watched) for seed in seeds]
        print(f"\n{name}, seeds {seeds.start} to {seeds.stop - 1}\n")
        print("| belief | squared error | of the paper's | log score | value of its plan, pool | no pool |")
        print("|---|---|---|---|---|---|")
        for belief in runs[0]:
            error, score, pooled, single = np.array([run[belief] for run in runs]).T
            of_paper = error / np.array([run["paper"][0] for run in runs])
            figures = (told(error, 4), told(of_paper, 2), told(score, 1), told(pooled, 2), told(single, 2))
            print(f"| {belief} | {' | '.join(figures)} |", flush=True)


def told(values: FloatArray, digits: int) -> str:
    """A mean with its 95 % interval, which one seed does not have."""
    found = estimate(values)
    within = "" if math.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{within}".replace("-", "\u2212")


if __name__ == "__main__":
    main()
