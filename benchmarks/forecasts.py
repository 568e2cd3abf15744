"""How far beliefs are from the truth on a language model whose success rates are known exactly.

One run of the laboratory, planned by our default rule over a pool; beside it every belief watches the same outcomes and
says, before each step, what it expects of the same candidates. So the beliefs differ in nothing but what they make of
what they saw.

    python -m benchmarks.forecasts [--regimes skills,keys,tail] [--seeds 1] [--steps N]

Columns: mean squared error of the expected against the true success rate, and the same as a share of the paper's
estimator; the log score of the true rate under the Beta belief (higher is better); and the share of the value of the
best plan, made with true rates from the same candidates, that a plan made with the belief would have had.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from knapsack_rl.allocator import KnapsackAllocator, expected_value
from knapsack_rl.beliefs import Beliefs, Forecast, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.calibrated import CalibratedBeliefs
from knapsack_rl.lab.regimes import REGIMES, Regime
from knapsack_rl.lab.world import LanguageModelWorld
from knapsack_rl.notation import FloatArray
from knapsack_rl.solver import solve
from knapsack_rl.strategy import OneRound, Request, play
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals, knapsack_value

POOL, MOST = 4, 64
HALF_LIVES = {"skills": 40.0, "keys": 40.0, "tail": 530.0}
# The first steps know nothing yet, whatever the belief.
SKIPPED, PLANNED_EVERY = 15, 5


def watchers(world: LanguageModelWorld, half_life: float) -> Mapping[str, Beliefs]:
    """The beliefs that are compared."""
    return {
        "paper": PaperBeliefs(),
        "posterior": PosteriorBeliefs(half_life),
        "calibrated": CalibratedBeliefs(half_life),
        "calibrated, hidden states": CalibratedBeliefs(half_life, world.hidden_states),
    }


def watch(regime: Regime, seed: int, steps: int) -> dict[str, FloatArray]:
    """Mean over the steps of each belief's three measures."""
    world = LanguageModelWorld(regime, seed)
    half_life = HALF_LIVES[regime.name]
    leader = OneRound(KnapsackAllocator(PosteriorBeliefs(half_life), expected_value, 0, MOST), POOL)
    beliefs = watchers(world, half_life)
    budget = regime.groups * regime.num_generations
    found: dict[str, list[list[float]]] = {name: [] for name in beliefs}
    for step in range(steps):
        candidates: list[str] = []
        played = play(leader, Request(step, regime.groups, budget, _noting(world.take, candidates)), world.generate)
        true_P = world.success_rates(candidates)
        for name, belief in beliefs.items():
            forecast = belief.forecast(candidates, step)
            if step >= SKIPPED:
                share = value_share(forecast, true_P, budget) if step % PLANNED_EVERY == 0 else math.nan
                error = float(np.mean((forecast.success_rates_P - true_P) ** 2))
                found[name].append([error, log_score(forecast, true_P), share])
            belief.observe(played.batch.outcomes)
        world.train(played.batch)
    return {name: np.nanmean(np.array(rows), axis=0) for name, rows in found.items()}


def value_share(forecast: Forecast, true_P: FloatArray, budget: int) -> float:
    """True value of the plan by the belief, as a share of that of the plan by the truth; prompts may be left out."""
    alpha_P, beta_P = np.maximum(forecast.alpha_P, 1e-3), np.maximum(forecast.beta_P, 1e-3)
    limits = np.zeros(true_P.size, dtype=np.int64), np.full(true_P.size, MOST)
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
    parser.add_argument("--steps", type=int, default=None, help="of each run; the regime's own by default")
    given = parser.parse_args(words)
    for name in given.regimes.split(","):
        regime = REGIMES[name]()
        runs = [watch(regime, seed, given.steps or regime.steps) for seed in range(given.seeds)]
        print(f"\n{name}, {given.seeds} seed(s)\n")
        print("| belief | squared error | of the paper's | log score | value of its plan |")
        print("|---|---|---|---|---|")
        of_paper = np.mean([run["paper"][0] for run in runs])
        for belief in runs[0]:
            error, score, share = np.mean([run[belief] for run in runs], axis=0)
            print(f"| {belief} | {error:.4f} | {error / of_paper:.2f} | {score:.2f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
