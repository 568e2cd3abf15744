"""A rule of your own, in one function: rollouts by the probability that a group is mixed.

    python examples/04_write_a_rule.py

docs/write-a-rule.md builds this file step by step, then checks the rule, compares it and trains with it. Needs numpy
only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl import AllocationConfig, AllocationProblem, Forecast, KnapsackAllocator, Outcomes


def likely_mixed(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """Value of n rollouts: the probability 1 - p^n - (1-p)^n of a mixed group; the paper's value without gain."""
    p, n = forecast.success_rates_P[:, None], np.arange(high)
    marginals_P_N = p**n * (1 - p) + (1 - p) ** n * p  # increase of the value from n to n + 1
    marginals_P_N[:, 0] = 0.0  # a group of one has no value
    return AllocationProblem(marginals_P_N, np.full(p.size, low), np.full(p.size, high))


@dataclass(frozen=True)
class Tilted:
    """The same value times (1-p)^tilt, which favours hard prompts."""

    tilt: float

    def __call__(self, forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        """The allocation problem of a forecast."""
        p, n = forecast.success_rates_P[:, None], np.arange(high)
        marginals_P_N = (1 - p) ** self.tilt * (p**n * (1 - p) + (1 - p) ** n * p)
        marginals_P_N[:, 0] = 0.0
        return AllocationProblem(marginals_P_N, np.full(p.size, low), np.full(p.size, high))


hard_first = Tilted(tilt=2.0)

if __name__ == "__main__":
    solved = (0, 1, 2, 4, 8, 12, 15, 16)
    seen = Outcomes.of_groups(0, [(f"{k}/16", [1.0] * k + [0.0] * (16 - k)) for k in solved])
    print("solved before" + "".join(f"{prompt_id:>7}" for prompt_id in seen.prompt_ids))
    for name, allocator in {
        "beta": AllocationConfig(rule="beta", pool=1).make_allocator(),
        "likely_mixed": KnapsackAllocator(rule=likely_mixed),
        "hard_first": KnapsackAllocator(rule=hard_first),
    }.items():
        allocator.observe(seen)
        plan = allocator.plan(seen.prompt_ids, budget=64, step=1)
        print(f"{name:13}" + "".join(f"{count:7d}" for count in plan.counts_P.tolist()))
