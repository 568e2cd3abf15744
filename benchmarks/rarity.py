"""What weighing advantages by rarity does where many answers are right: regime `long`, uniform groups.

A cluster is the path of the first letters that an answer walks (`--letters`, 0: the whole answer). Beside pass@1 and
pass@8 on held-out prompts: distinct clusters among the right ones of 16 answers, and the mean size of a cluster in the
groups trained on, which says how much there is to weigh.

    python -m benchmarks.rarity [--alphas 0,1] [--seeds 2] [--steps 120] [--letters 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from benchmarks.measure import machine
from benchmarks.pass_at import DRAWN, SAMPLES, pass_at, sampled
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.long_answers import TOKENS_PER_STEP
from knapsack_arena.lab.policy import Tokens
from knapsack_arena.lab.trials import find_regime
from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.strategies import Batch, StepSpec, run_step
from knapsack_rl.notation import FloatArray
from knapsack_rl.shaping.rarity import Rarity

# A quarter of the regime's groups, which was best for all rules.
GROUPS, AVERAGE = 8, 8


class RarityEnvironment(LanguageModelEnvironment):
    """The laboratory's environment, with advantages weighed by rarity."""

    def __init__(self, seed: int, alpha: float, letters: int) -> None:
        super().__init__(find_regime("long"), seed)
        self.letters, self.rarity, self.sizes = letters, Rarity(self.cluster, alpha, share=True), list[float]()

    def cluster(self, prompt: Any, answers: Sequence[Any]) -> list[Hashable]:
        """The first letters of the walk; the whole answer with 0 letters."""
        return [tuple(each[::TOKENS_PER_STEP][: self.letters] if self.letters else each) for each in answers]

    def _advantages(self, batch: Batch, answers: Sequence[Tokens]) -> FloatArray:
        advantages_PG, group_PG = super()._advantages(batch, answers), batch.outcomes.group_PG
        one = Rarity(self.cluster, 1.0).weights(group_PG, [None] * len(answers), answers)
        self.sizes.append(float((1 / one).mean()))
        return advantages_PG * self.rarity.weights(group_PG, [None] * len(answers), answers)


def measured(environment: RarityEnvironment) -> tuple[float, float, float]:
    """pass@1, pass@8 and distinct clusters of right answers, on held-out prompts, by `SAMPLES` answers to each."""
    answers, right = sampled(environment)
    labels = environment.cluster(None, answers)
    hits_P = right.reshape(-1, SAMPLES).sum(axis=1)
    distinct = [len({labels[i] for i in range(at, at + SAMPLES) if right[i]}) for at in range(0, len(answers), SAMPLES)]
    return float(right.mean()), pass_at(hits_P, SAMPLES, DRAWN), float(np.mean(distinct))


def main() -> None:
    """Print a row for each exponent and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alphas", default="0,1", help="exponents")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120, help=f"of {GROUPS} groups of {AVERAGE}")
    parser.add_argument("--letters", type=int, default=2, help="of the walk that make a cluster; 0: the whole answer")
    given = parser.parse_args()
    print(f"{machine()}\n\n| alpha | seed | pass@1 | pass@8 | distinct right clusters of {SAMPLES} | cluster size |")
    print("|---|---|---|---|---|---|")
    for seed in range(given.seeds):
        for alpha in map(float, given.alphas.split(",")):
            environment = RarityEnvironment(seed, alpha, given.letters)
            strategy = make_strategy("uniform", RuleContext(groups=GROUPS, average=AVERAGE))
            for step in range(given.steps):
                spec = StepSpec(step, GROUPS, GROUPS * AVERAGE, environment.take)
                environment.train(run_step(strategy, spec, environment.generate).batch)
            one, eight, distinct = measured(environment)
            size = float(np.mean(environment.sizes))
            print(f"| {alpha:g} | {seed} | {one:.3f} | {eight:.3f} | {distinct:.2f} | {size:.2f} |", flush=True)


if __name__ == "__main__":
    main()
