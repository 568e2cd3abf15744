"""Subjects measured in processes of their own, for their peak memory: ``python -m benchmarks.subjects NAME ...``.

Each subject prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import peak_megabytes, seconds
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.outcomes import Outcomes

CHUNK = 100_000


def outcomes_of(prompt_ids: tuple[str, ...], rollouts: int, step: int, seed: int) -> Outcomes:
    """A group per prompt, from success rates that run from nearly 0 to nearly 1."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.5, 0.5, len(prompt_ids))
    rewards = (rng.random((len(prompt_ids), rollouts)) < rates[:, None]).astype(np.float64)
    return Outcomes(step, prompt_ids, np.full(len(prompt_ids), rollouts), rewards.ravel())


def met(prompts: int, rollouts: int) -> tuple[KnapsackAllocator, float]:
    """An allocator that has seen every prompt once, and the seconds that took; never all ids at once."""
    allocator, spent = KnapsackAllocator(), 0.0
    for start in range(0, prompts, CHUNK):
        outcomes = outcomes_of(names(start, min(start + CHUNK, prompts)), rollouts, 0, start)
        began = time.perf_counter()
        allocator.observe(outcomes)
        spent += time.perf_counter() - began
    return allocator, spent


def names(start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"prompt-{i:08d}" for i in range(start, stop))


def large_plan(prompts: int, budget: int, repeats: int) -> dict[str, float]:
    baseline = peak_megabytes()
    allocator, _ = met(prompts, 8)
    ids = names(0, prompts)
    times = seconds(lambda: allocator.plan(ids, budget, 1), repeats)
    return {"seconds": float(np.median(times)), "best": min(times), "peak": peak_megabytes(), "baseline": baseline}


def step(prompts: int, repeats: int) -> dict[str, float]:
    """Plan 256 x 8 rollouts on a store of many prompts, then learn from their outcomes; seconds of a step."""
    allocator, _ = met(prompts, 2)
    rng = np.random.default_rng(0)
    times = []
    for number in range(1, repeats + 1):
        ids = tuple(f"prompt-{i:08d}" for i in rng.choice(prompts, 256, replace=False))
        began = time.perf_counter()
        plan = allocator.plan(ids, 2048, number)
        planned = time.perf_counter() - began
        outcomes = Outcomes(number, ids, plan.counts_P, (rng.random(2048) < 0.5).astype(np.float64))
        began = time.perf_counter()
        allocator.observe(outcomes)
        times.append(planned + time.perf_counter() - began)
    return {"seconds": float(np.median(times)), "best": min(times)}


def keep(prompts: int, file: str) -> dict[str, float]:
    baseline = peak_megabytes()
    allocator, spent = met(prompts, 2)
    began = time.perf_counter()
    allocator.save(Path(file))
    saved = time.perf_counter() - began
    return {"observe": spent, "save": saved, "peak": peak_megabytes(), "baseline": baseline}


def fetch(file: str) -> dict[str, float]:
    allocator = KnapsackAllocator()
    began = time.perf_counter()
    allocator.load(Path(file))
    return {"load": time.perf_counter() - began, "peak": peak_megabytes()}


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    subjects = {"large_plan": large_plan, "step": step, "keep": keep, "fetch": fetch}
    print(json.dumps(subjects[name](*(int(word) if word.isdigit() else word for word in words))))
