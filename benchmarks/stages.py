"""What beliefs in stages are worth on regime `keys`, whose first stage is the first token of the answer.

Three plans over a pool of four, at a quarter of the regime's step, with the same seeds:

- `whole`: the reward is 1 for the whole answer, and so is the belief;
- `partial`: the reward is 1/2 for a right first token as well, and the belief is that of the whole answer;
- `staged`: the rewards of `partial`, and `StagedBeliefs`: a prompt whose answer is hopeless is valued at its
  first token. Near 0 is a rate of .15: beliefs without features are not below .05 before a dozen failures.

    python -m benchmarks.stages [--seeds 3] [--steps 600]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.measure import machine
from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.lab.policy import Tokens
from knapsack_arena.lab.trials import find_regime
from knapsack_arena.strategies import OneRound, StepSpec, run_step
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import HALF_LIFE_PASSES, BetaBeliefs
from knapsack_rl.beliefs.staged import StagedBeliefs
from knapsack_rl.outcomes import Outcomes

PLANS = ("whole", "partial", "staged")
POOL, AVERAGE, MEASURED_EVERY = 4, 8, 20
NEAR_ZERO = 0.15


class _InHalves(StagedBeliefs):
    """Stages of rewards 1/2 and 1."""

    def observe(self, outcomes: Outcomes) -> None:
        """Count halves as stages."""
        super().observe(replace(outcomes, rewards_PG=2 * outcomes.rewards_PG))


def run(plan: str, seed: int, steps: int) -> tuple[float, float, float]:
    """Area under the success rate, its end, and that of the harder half at the start."""
    regime = find_regime("keys")
    environment = LanguageModelEnvironment(regime, seed, Loss("prompt"))
    if plan != "whole":
        right, answers = environment.policy.right, environment.policy.answers  # type: ignore[attr-defined]

        def passed(row: int, tokens: Tokens) -> float:
            return 1.0 if right(row, tokens) else 0.5 * (tokens[:1] == answers[row][:1])

        environment.policy.right = passed  # type: ignore[assignment, method-assign]
    groups = regime.groups // 4
    half_life = HALF_LIFE_PASSES * len(regime.train) / groups
    beliefs = BetaBeliefs(half_life) if plan != "staged" else _InHalves(2, lambda: BetaBeliefs(half_life), NEAR_ZERO)
    strategy = OneRound(KnapsackAllocator(beliefs, min_count=0), POOL)
    before_P = environment.success_rates()
    hard_P = before_P <= np.median(before_P)
    means, hard = [float(before_P.mean())], 0.0
    for step in range(steps):
        spec = StepSpec(step, groups, groups * AVERAGE, environment.take)
        environment.train(run_step(strategy, spec, environment.generate).batch)
        if (step + 1) % MEASURED_EVERY == 0:
            rates_P = environment.success_rates()
            means.append(float(rates_P.mean()))
            hard = float(rates_P[hard_P].mean())
    return float(np.trapezoid(means) / (len(means) - 1)), means[-1], hard


def main(words: Sequence[str] | None = None) -> None:
    """Print a row for each plan: means over seeds, and differences to `partial` seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="quarter steps; the regime's budget is 600")
    given = parser.parse_args(words)
    print(f"{machine()}\n\n| plan | seed | area | end | harder half |\n|---|---|---|---|---|")
    for seed in range(given.seeds):
        for plan in PLANS:
            area, end, hard = run(plan, seed, given.steps)
            print(f"| `{plan}` | {seed} | {100 * area:.1f} | {100 * end:.1f} | {100 * hard:.1f} |", flush=True)


if __name__ == "__main__":
    main()
