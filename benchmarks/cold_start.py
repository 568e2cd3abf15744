"""Which prompts to try first: at random, or by a G-optimal design over the base model's hidden states.

    python -m benchmarks.cold_start [--regimes tail,skills] [--prompts 900] [--seeds 6]

Before any training, 32 prompts a step get 8 rollouts each, and a logistic regression on 24 principal components of the
hidden states learns from them. Columns: squared error of the rates of prompts that were not tried, of the plain rate
and of the one by normalised maximum likelihood, with standard errors over seeds. The greedy design takes the prompt of
largest leverage next, the vertex that Frank and Wolfe's method would move to (arXiv 2210.00701 in the linear case).
"""

from __future__ import annotations

import argparse

import numpy as np

from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.lab.trials import find_regime
from knapsack_rl.beliefs.online_logistic import OnlineLogistic, logistic, normalised_maximum_likelihood
from knapsack_rl.notation import FloatArray

COMPONENTS, PROMPTS_A_STEP, ROLLOUTS, CHECKED = 24, 32, 8, (5, 10, 20)


def inputs_and_rates(regime: str, prompts: int) -> tuple[FloatArray, FloatArray]:
    """Inputs ``[P, F]`` with an intercept, and true rates ``[P]``, of a sample of a regime's prompts."""
    found = find_regime(regime)
    environment = LanguageModelEnvironment(found, 0, Loss())
    order = np.random.default_rng(0).permutation(len(found.train))[:prompts]
    ids = [found.train[i].prompt for i in order.tolist()]
    features = environment.hidden_states(ids)
    whole = np.hstack([np.asarray(features.features_P_F, float), np.asarray(features.confidence_P_C, float)])
    left, _, _ = np.linalg.svd(whole - whole.mean(axis=0), full_matrices=False)
    inputs = left[:, :COMPONENTS] * np.sqrt(len(left) / COMPONENTS)
    return np.hstack([np.ones((len(inputs), 1)), inputs]), np.asarray(environment.success_rates(ids), float)


def designed(inputs_P_F: FloatArray, count: int, random: np.random.Generator) -> list[int]:
    """The prompts of largest leverage, one after the other; ties by chance."""
    inverse, chosen = np.eye(inputs_P_F.shape[1]), []
    left_P = np.ones(len(inputs_P_F), dtype=bool)
    for _ in range(count):
        leverage = ((inputs_P_F @ inverse) * inputs_P_F).sum(axis=1) + 1e-9 * random.random(len(inputs_P_F))
        best = int(np.where(left_P, leverage, -1).argmax())
        chosen.append(best)
        left_P[best] = False
        direction = inverse @ inputs_P_F[best]
        inverse -= np.outer(direction, direction) / (1 + inputs_P_F[best] @ direction)
    return chosen


def errors(inputs_P_F: FloatArray, rates_P: FloatArray, order: list[int], random: np.random.Generator) -> list[float]:
    """Squared errors of both forecasts after each checked number of steps."""
    size = inputs_P_F.shape[1]
    fit, found = OnlineLogistic(np.zeros(size), np.ones(size), 1.0), []
    for step in range(1, max(CHECKED) + 1):
        rows = order[PROMPTS_A_STEP * (step - 1) : PROMPTS_A_STEP * step]
        attempts = np.full(len(rows), float(ROLLOUTS))
        fit.learn(inputs_P_F[rows], random.binomial(ROLLOUTS, rates_P[rows]).astype(float), attempts)
        if step in CHECKED:
            untried_P = ~np.isin(np.arange(len(rates_P)), order[: PROMPTS_A_STEP * step])
            logits_P = fit.logits(inputs_P_F)
            for forecast_P in (logistic(logits_P), normalised_maximum_likelihood(logits_P, fit.leverage(inputs_P_F))):
                found.append(float(((forecast_P - rates_P) ** 2)[untried_P].mean()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--regimes", default="tail,skills")
    parser.add_argument("--prompts", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    for regime in options.regimes.split(","):
        inputs, rates = inputs_and_rates(regime, options.prompts)
        tried = PROMPTS_A_STEP * max(CHECKED)
        for name in ("random", "design"):
            runs = []
            for seed in range(options.seeds):
                random = np.random.default_rng(100 + seed)
                if name == "random":
                    order = random.permutation(len(inputs))[:tried].tolist()
                else:
                    order = designed(inputs, tried, random)
                runs.append(errors(inputs, rates, order, random))
            means, spread = np.mean(runs, axis=0), np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
            for i, step in enumerate(CHECKED):
                pairs = [f"{means[2 * i + k]:.4f} ± {spread[2 * i + k]:.4f}" for k in (0, 1)]
                print(f"{regime:8} {name:7} {step:3} steps   plain {pairs[0]}   normalised {pairs[1]}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
