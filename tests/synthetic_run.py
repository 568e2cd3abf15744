"""A seeded toy learner with hidden success rates, recorded by the real allocators and the real trace writer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from knapsack_rl.config import AllocationConfig, RuleName
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace import TraceWriter

PROMPTS, GROUPS, AVERAGE = 128, 32, 8


def record_run(
    path: Path, rule: RuleName, *, steps: int = 60, seed: int = 0, exact: bool = True, ended: str | None = "finished"
) -> Path:
    """Record a run of ``steps`` generation steps; with ``exact`` evaluations that know every success rate."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2.0, 3.5, PROMPTS)
    allocator = AllocationConfig(rule=rule, pool=1, max_count=64, half_life=PROMPTS / GROUPS).make_allocator()
    settings = {"learning_rate": 2e-4, "model": {"hidden_size": 128, "layers": 4}, "num_generations": AVERAGE}
    writer = TraceWriter(path, {"engine": "toy", "rule": rule, "seed": seed, "settings": settings})
    spent = 0
    for step, rows in zip(range(steps), _epochs(rng), strict=False):
        if exact and step % max(steps // 12, 1) == 0:
            _evaluate(writer, step, spent, logits)
        ids = [f"q{row:03d}" for row in rows]
        plan = allocator.plan(ids, GROUPS * AVERAGE, step)
        outcomes = _roll_out(rng, plan, _rate(logits[rows]))
        allocator.observe(outcomes)
        spent += plan.budget
        # A mixed group raises the logit of its prompt, and all logits a little.
        logits[rows[outcomes.mixed_P]] += 0.18
        logits += 0.0006 * outcomes.mixed_P.sum()
        texts = {prompt_id: f"What is {row} + {row}?" for prompt_id, row in zip(ids, rows, strict=True)}
        samples = [
            {
                "id": ids[i],
                "completion": f"{2 * rows[i]}",
                "reward": float(outcomes.rewards_PG[outcomes.group_PG == i][0]),
            }
            for i in range(2)
        ]
        times = {"overhead": 0.0008, "step": 1.1}
        writer.step(plan, outcomes, optimizer_step=step, seconds=times, texts=texts, samples=samples)
    if exact:
        _evaluate(writer, steps, spent, logits)
    if ended:
        writer.end(ended)
    writer.close()
    return path


def _rate(logits: FloatArray) -> FloatArray:
    rates: FloatArray = 1 / (1 + np.exp(-logits))
    return rates


def _epochs(rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        order = rng.permutation(PROMPTS)
        yield from order.reshape(-1, GROUPS)


def _roll_out(rng: np.random.Generator, plan: Plan, rates_P: FloatArray) -> Outcomes:
    rewards = (rng.random(plan.budget) < np.repeat(rates_P, plan.counts_P)).astype(np.float64)
    return Outcomes(plan.step, plan.prompt_ids, plan.counts_P, rewards, np.full(plan.budget, 6))


def _evaluate(writer: TraceWriter, step: int, spent: int, logits: FloatArray) -> None:
    rates = np.where(logits > 6, 1.0, np.where(logits < -6, 0.0, _rate(logits)))
    metrics = {"train/pass_rate": float(rates.mean()), "heldout/pass_rate": float(_rate(logits - 0.6).mean())}
    writer.evaluation(step, spent, metrics, {f"q{i:03d}": float(rate) for i, rate in enumerate(rates)})
