"""What a plan is worth by the number of prompts of a step, at known success rates, per rollout.

Each step plans over a pool of four candidates for each prompt, 8 rollouts a prompt; the rates of candidates are drawn
from Beta(0.3, 0.3), most of them near 0 or 1. The value is a share of that with the most prompts.

    python -m benchmarks.batch_sizes [--steps 3000] [--seed 0]
"""

from __future__ import annotations

import argparse

import numpy as np

from knapsack_rl import AllocationConfig
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.values import knapsack_marginals, knapsack_value

POOL, AVERAGE, MOST = 4, 8, 128
SIZES = (1, 2, 4, 8, 16, 32)


def value(prompts: int, steps: int, seed: int) -> float:
    """Mean value of a rollout over ``steps / prompts`` steps of this many prompts."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(max(steps // prompts, 200)):
        rates_P = rng.beta(0.3, 0.3, POOL * prompts)
        low_P, high_P = same_limits(rates_P.size, 0, MOST)
        plan = solve(
            knapsack_marginals(rates_P, MOST), AVERAGE * prompts, low_P, high_P, min_group=AllocationConfig.min_group
        )
        found.append(knapsack_value(rates_P, MOST)[np.arange(rates_P.size), plan.counts_P].sum() / prompts)
    return float(np.mean(found))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="steps of one prompt; fewer of several")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = [value(prompts, given.steps, given.seed) for prompts in SIZES]
    print("| prompts | value, of that with the most |\n|---|---|")
    for prompts, each in zip(SIZES, found, strict=True):
        print(f"| {prompts} | {each / found[-1]:.2f} |")


if __name__ == "__main__":
    main()
