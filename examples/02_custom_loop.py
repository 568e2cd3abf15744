"""A training loop of your own: plan, roll out, observe, save, and go on from the save.

    python examples/02_custom_loop.py

Needs numpy only. The "model" is pretended: each prompt has a hidden logit of success, and the gradient of GRPO for
such a two-outcome policy is known exactly: n rollouts whose rewards have the standard deviation s push the logit by
n * s. Nothing is shared between prompts, so this shows the mechanics, not what a language model would gain. Seeded: the
same numbers come out every time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from knapsack_rl import Allocator, Outcomes, make_allocator
from knapsack_rl.allocator import Method
from knapsack_rl.metrics import step_metrics

PROMPTS, PER_STEP, MEAN_GROUP, STEPS = 64, 16, 8, 60
LEARNING_RATE = 0.05


class PretendModel:
    """One logit of success per prompt."""

    def __init__(self, seed: int) -> None:
        """Most prompts start hard."""
        self.random = np.random.default_rng(seed)
        self.skill = self.random.normal(-2.0, 2.0, PROMPTS)

    def rewards(self, prompt_id: str, count: int) -> list[float]:
        """Rewards of ``count`` rollouts: 1 for a success."""
        p = 1 / (1 + np.exp(-self.skill[int(prompt_id)]))
        return [float(success) for success in self.random.random(count) < p]

    def learn(self, outcomes: Outcomes) -> None:
        """One step of GRPO; a group whose rewards agree has s = 0 and moves nothing."""
        spread_P = np.sqrt(outcomes.pass_rates_P * (1 - outcomes.pass_rates_P))
        for prompt_id, count, spread in zip(outcomes.prompt_ids, outcomes.counts_P, spread_P, strict=True):
            self.skill[int(prompt_id)] += LEARNING_RATE * count * spread


def run(method: Method) -> tuple[float, float, float]:
    """Mean success rate at the end, and the mean shares of prompts and of rollouts that had a gradient."""
    model, order = PretendModel(seed=0), np.random.default_rng(1)
    allocator: Allocator = make_allocator(method, min_count=2, max_count=64)
    shares = []
    for step in range(STEPS):
        prompt_ids = [str(i) for i in order.choice(PROMPTS, PER_STEP, replace=False)]

        plan = allocator.plan(prompt_ids, budget=MEAN_GROUP * PER_STEP, step=step)
        groups = [(i, model.rewards(i, count)) for i, count in zip(plan.prompt_ids, plan.counts_P, strict=True)]
        outcomes = Outcomes.of_groups(step, groups)
        allocator.observe(outcomes)

        model.learn(outcomes)
        metrics = step_metrics(plan, outcomes)
        shares.append((metrics["frac_prompts_mixed"], metrics["frac_rollouts_mixed"]))
        if step == STEPS // 2:  # as if the machine had been taken away
            allocator = restarted(allocator, method)
    success = float((1 / (1 + np.exp(-model.skill))).mean())
    return success, *np.mean(shares, axis=0).tolist()


def restarted(allocator: Allocator, method: Method) -> Allocator:
    """A new allocator that knows what the old one knew."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "beliefs.npz"
        allocator.save(path)
        fresh = make_allocator(method, min_count=2, max_count=64)
        fresh.load(path)
    return fresh


print("method    | success at the end | prompts with a gradient | rollouts with one")
methods: tuple[Method, ...] = ("uniform", "paper", "posterior")
for name in methods:
    success, of_prompts, of_rollouts = run(name)
    print(f"{name:9} | {success:18.3f} | {of_prompts:23.3f} | {of_rollouts:17.3f}")
