"""One batch: success rates of prompts in, rollouts of each prompt out.

    python examples/01_one_batch.py

Needs numpy only. Eight prompts share 64 rollouts: stock GRPO gives each of them 8.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl import solve
from knapsack_rl.values import knapsack_marginals, nonzero_gradient_probability

BUDGET, LOW, HIGH = 64, 2, 32

success_rates_P = np.array([0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
prompts = np.arange(success_rates_P.size)

# Value of one more rollout for each prompt: a table of prompts x rollouts already planned.
marginals_P_N = knapsack_marginals(success_rates_P, HIGH)

# The counts of largest total value. The solver reads the table only, no success rates.
solution = solve(marginals_P_N, BUDGET, np.full(prompts.size, LOW), np.full(prompts.size, HIGH))

# Probability that a group is mixed, and so has a gradient: with 8 rollouts each, and as planned.
mixed_P_N = nonzero_gradient_probability(success_rates_P, HIGH)
equal_P, planned_P = mixed_P_N[:, BUDGET // prompts.size], mixed_P_N[prompts, solution.counts_P]

print("success rate | equal  mixed | planned  mixed")
for p, equal, count, planned in zip(success_rates_P, equal_P, solution.counts_P, planned_P, strict=True):
    print(f"{p:12.2f} | {BUDGET // prompts.size:5d}  {equal:5.2f} | {count:7d}  {planned:5.2f}")
print(f"{'in all':>12} | {BUDGET:5d}  {equal_P.sum():5.2f} | {solution.counts_P.sum():7d}  {planned_P.sum():5.2f}")
print(f"value of the last rollout bought: {solution.price:.5f}")
