"""A training loop of your own: plan, generate, observe, save, and resume.

    python examples/02_custom_loop.py

Needs numpy only. The "model" is simulated: each prompt has a hidden logit of success, and GRPO's gradient for such a
two-outcome policy is known: the sum of advantage times reward over the prompt's rollouts. Prompts share nothing, so
this shows the mechanics, not what a language model would gain. Seeded: the same numbers come out every time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from knapsack_rl import AllocationConfig, Session, group_advantages
from knapsack_rl.config import RuleName

PROMPTS, PER_STEP, AVERAGE, STEPS = 64, 16, 8, 60
LEARNING_RATE = 0.05


class SimulatedModel:
    """One logit of success per prompt."""

    def __init__(self, seed: int) -> None:
        """Make a model to which most prompts are hard."""
        self.random = np.random.default_rng(seed)
        self.skill = self.random.normal(-2.0, 2.0, PROMPTS)

    def success_rates(self) -> np.ndarray:
        """Success rate of each prompt."""
        return 1 / (1 + np.exp(-self.skill))

    def rewards(self, prompt: int, count: int) -> np.ndarray:
        """Rewards of ``count`` rollouts: 1 for a success, else 0."""
        return (self.random.random(count) < self.success_rates()[prompt]).astype(float)

    def learn(self, prompts: np.ndarray, rewards: np.ndarray) -> None:
        """Make one step of GRPO; a group whose rewards are equal has no gradient."""
        np.add.at(self.skill, prompts, LEARNING_RATE * group_advantages(prompts, rewards) * rewards)


def run(rule: RuleName) -> tuple[float, float, float]:
    """Final mean success rate, and the mean shares of prompts and of rollouts in mixed groups."""
    model, order = SimulatedModel(seed=0), np.random.default_rng(1)
    session = Session(AllocationConfig(rule=rule, average=AVERAGE, pool=1, max_count=64))
    shares = []
    for step in range(STEPS):
        offered = order.choice(PROMPTS, PER_STEP, replace=False)

        plan = session.plan(offered, budget=AVERAGE * PER_STEP)
        prompts = np.repeat([int(prompt_id) for prompt_id, _ in plan], [count for _, count in plan])
        rewards = np.concatenate([model.rewards(int(prompt_id), count) for prompt_id, count in plan])
        metrics = session.observe(plan.step, prompts, rewards)

        model.learn(prompts, rewards)
        shares.append((metrics["frac_prompts_mixed"], metrics["frac_rollouts_mixed"]))
        if step == STEPS // 2:  # as if the process had been restarted
            session = restarted(session)
    prompts_mixed, rollouts_mixed = np.mean(shares, axis=0).tolist()
    return float(model.success_rates().mean()), prompts_mixed, rollouts_mixed


def restarted(session: Session) -> Session:
    """A new session with the saved state of the old one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.npz"
        session.save(path)
        resumed = Session(session.config)
        resumed.load(path)
    return resumed


print("rule      | final success rate | prompts in mixed groups | rollouts in mixed groups")
rules: tuple[RuleName, ...] = ("uniform", "paper", "beta")
for name in rules:
    success, of_prompts, of_rollouts = run(name)
    print(f"{name:9} | {success:18.3f} | {of_prompts:23.3f} | {of_rollouts:24.3f}")
