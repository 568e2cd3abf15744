"""Write same_plans.json: what the core plans and believes, step by step, for given prompts and outcomes.

The trainers' adapters live in environments of their own, so no one test can hold them side by side. Instead each must
reproduce this file: same prompts and outcomes in, same plans and beliefs out. Run it again, and look at the difference,
when a plan is meant to change: ``python tests/golden/make_same_plans.py``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from knapsack_rl import AllocationConfig, Outcomes, content_id
from knapsack_rl.beliefs.looks import Looks, log_odds
from knapsack_rl.features.text import TextFeatures

PATH = Path(__file__).with_name("same_plans.json")
PROMPTS, PROMPTS_A_STEP, AVERAGE, STEPS = 12, 6, 4, 8
SETTINGS: dict[str, Any] = {"max_count": 10, "half_life": 2.0}  # 12 prompts, 6 a step: an epoch is 2 steps
# With a pool of 2 the prompts of a step are candidates, and half the rollouts are spent on those that the plan chooses.
RUNS: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule, "pool": 1, "features": None} for rule in ("calibrated", "beta", "paper", "uniform")},
    "pool": {"rule": "calibrated", "pool": 2, "features": None},
}
# With looks: texts of the first look, and the log-probability of one greedy token, None where asking for it fails.
LOOKS: dict[str, dict[str, Any]] = {
    "texts": {"rule": "calibrated", "pool": 2, "features": "text", "greedy": False},
    "texts and log odds": {"rule": "calibrated", "pool": 2, "features": "text", "greedy": True},
    "log odds": {"rule": "calibrated", "pool": 2, "features": None, "greedy": True},
}


def chat(i: int) -> list[dict[str, str]]:
    """The content of a prompt, whose hash is its id."""
    return [{"role": "user", "content": f"What is {i} + {i}?"}]


def run(rule: Any, pool: int, features: str | None, greedy: bool | None = None) -> dict[str, Any]:
    """All steps of a run: beliefs, plan and outcomes of each, and the beliefs that remain.

    Args:
        rule, pool, features: as the settings of these names.
        greedy: look at prompts, with the log-probability of one greedy token or without; None: no looks.
    """
    random, policy, looks = np.random.default_rng(0), np.random.default_rng(1), Looks()
    rates = np.linspace(0.0, 1.0, PROMPTS)
    config = AllocationConfig(rule=rule, average=AVERAGE, pool=pool, min_count=0 if pool > 1 else 2, **SETTINGS)
    text_features = TextFeatures() if features else None
    allocator = config.make_allocator()
    ids = [content_id(chat(i)) for i in range(PROMPTS)]
    steps, order = [], np.arange(PROMPTS)
    for step in range(STEPS):
        if step % 2 == 0:
            order = random.permutation(PROMPTS)
        chosen = order[step % 2 * PROMPTS_A_STEP :][:PROMPTS_A_STEP]
        log_probs = [None if random_P < 0.1 else round(-3 * random_P, 6) for random_P in policy.random(len(chosen))]
        look = text_features([chat(i) for i in chosen]) if text_features else None
        if greedy is not None:
            given = [np.nan if each is None else each for each in log_probs]
            describe = None if look is None else lambda rows, look=look: look.features_P_F[rows]
            look = looks([ids[i] for i in chosen], log_odds(given) if greedy else None, describe)
        plan = allocator.plan([ids[i] for i in chosen], PROMPTS_A_STEP * AVERAGE // pool, step, look)
        rewards = [
            [float(x) for x in random.random(count) < rates[i]] for i, count in zip(chosen, plan.counts_P, strict=True)
        ]
        outcomes = Outcomes.of_groups(step, list(zip(plan.prompt_ids, rewards, strict=True)))
        allocator.observe(dataclasses.replace(outcomes, features=plan.features))
        steps.append(
            {
                "prompts": [int(i) for i in chosen],
                "rates": plan.success_rates_P.tolist(),
                "pseudo_counts": plan.pseudo_count_P.tolist(),
                "counts": plan.counts_P.tolist(),
                "rewards": rewards,
            }
            | ({"log_probs": log_probs} if greedy else {})
        )
    look = text_features([chat(i) for i in range(PROMPTS)]) if text_features else None
    final = allocator.beliefs.forecast(ids, STEPS, look if greedy is None else looks(ids))
    return {
        "rule": rule,
        "pool": pool,
        "features": features,
        "steps": steps,
        "beliefs": {"rates": final.success_rates_P.tolist(), "pseudo_counts": final.pseudo_count_P.tolist()},
    }


def same_plans() -> dict[str, Any]:
    """The whole file."""
    return {
        "settings": {"min_count": 2, **SETTINGS, "average": AVERAGE},
        "prompts": [chat(i) for i in range(PROMPTS)],
        "runs": {name: run(**choice) for name, choice in RUNS.items()},
        "looks": {name: run(**choice) for name, choice in LOOKS.items()},
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(same_plans(), indent=1) + "\n", encoding="utf-8")
