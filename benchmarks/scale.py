"""Costs of large runs: ``python -m benchmarks.scale [--quick]`` measures and simulates the tables of docs/scale.md.

Wall-clock times are this machine's; simulated figures are the same everywhere, because everything is seeded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.cluster import DEALERS, generate, make_batch
from benchmarks.measure import Row, machine, peak_megabytes, table
from benchmarks.subjects import met
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rollouts import WorkerSpeeds, deal, deal_tasks

# Prompts, workers and slots of the simulated clusters.
CLUSTERS = ((256, 16, 8), (256, 16, 32), (1024, 64, 16), (8192, 1000, 8))
LEARNING_STEPS = 20
# Tasks of a step and workers, where tasks are dealt whole.
WHOLE = ((64, 16), (512, 16), (512, 64))
STEPS = 6  # generated after each deal: the time of one step depends on its longest answer


def large_step(known: int, prompts: int, workers: int) -> dict[str, float]:
    """Plan, deal, learn and save one step of ``prompts`` on a store of ``known`` prompts, in a process of its own."""
    allocator, _ = met(known, 2)
    random = np.random.default_rng(0)
    ids = tuple(f"prompt-{i:08d}" for i in random.choice(known, prompts, replace=False))
    found: dict[str, float] = {}

    def timed(what: str, action: Callable[[], object]) -> None:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        found[what] = float(np.median(times))

    timed("plan", lambda: allocator.plan(ids, 8 * prompts, 1))
    plan = allocator.plan(ids, 8 * prompts, 1)
    rewards = (random.random(plan.budget) < 0.5).astype(np.float64)
    tokens = random.integers(1, 8192, plan.budget)
    timed("deal", lambda: deal(plan.counts_P, workers, random.uniform(100, 8000, prompts)))
    timed("learn", lambda: allocator.observe(Outcomes(1, ids, plan.counts_P, rewards, tokens)))
    with tempfile.TemporaryDirectory() as folder:
        timed("save", lambda: allocator.save(Path(folder) / "beliefs.npz"))
        found["megabytes"] = (Path(folder) / "beliefs.npz").stat().st_size / 2**20
    return found | {"peak": peak_megabytes()}


def costs(quick: bool) -> Iterator[Row]:
    """Wall-clock seconds that the library takes of a step."""
    for known, prompts in ((100_000, 1024), (1_000_000, 65_536), (10_000_000, 65_536))[: 1 if quick else 3]:
        command = [sys.executable, "-m", "benchmarks.scale", "--step", str(known), str(prompts), "1000"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        found = json.loads(answer.stdout)
        yield Row(f"{prompts:,} prompts x 8 of {known:,} known: plan", found["plan"], "s")
        yield Row("  deal to 1,000 workers", found["deal"], "s")
        yield Row("  learn", found["learn"], "s")
        yield Row("  save, at a checkpoint", found["save"], "s", note=f"{found['megabytes']:.0f} MB")
        whole = found["plan"] + found["deal"] + found["learn"] + found["save"]
        yield Row("  all together", whole, "s", note=f"peak memory {found['peak']:,.0f} MB")


def makespans(seeds: int, clusters: Sequence[tuple[int, int, int]]) -> Iterator[Row]:
    """Time of uneven groups over that of uniform ones, by way of dealing."""
    for prompts, workers, slots in clusters:
        times: dict[tuple[str, str], list[float]] = {}
        queued: dict[str, list[float]] = {"uniform": [], "uneven": []}
        tokens: dict[str, list[float]] = {}
        for seed in range(seeds):
            batch = make_batch(prompts, seed)
            steps = [batch.again(step) for step in range(STEPS)]
            for plan in batch.plans:
                tokens.setdefault(plan, []).append(sum(step.tokens(plan) for step in steps))
                for name in DEALERS:
                    dealt = DEALERS[name](batch.plans[plan], workers, batch.expected_P, seed)
                    ends = [float(generate(dealt, step, slots)[0].max()) for step in steps]
                    times.setdefault((plan, name), []).append(sum(ends))
            for plan, found in queued.items():
                # One worker with the slots of all: a free slot takes the next job, and no worker is left idle.
                dealt = deal(batch.plans[plan], 1, batch.expected_P, seed)
                found.append(sum(float(generate(dealt, step, workers * slots)[0].max()) for step in steps))
        time_of = {key: np.array(found) for key, found in times.items()}
        work = {plan: np.array(found) for plan, found in tokens.items()}
        uniform, uneven = time_of["uniform", "deal"], time_of["uneven", "deal"]
        by_tokens = time_of["uneven, by tokens", "deal"]
        more = work["uneven"] / work["uniform"]
        what = f"{prompts:,} x 8 on {workers:,} of {slots}: uneven / uniform"
        yield _ratio(what, uneven / uniform, most=1.02)
        as_trainers_do = time_of["uniform", "rows as they lie"]
        yield _ratio("  uneven, dealt / uniform, rows as they lie", uneven / as_trainers_do, most=1.02)
        yield _ratio("  of that, more tokens", more)
        yield _ratio("  per token", uneven / uniform / more, most=1.02)
        yield _ratio("  from one common queue", np.array(queued["uneven"]) / np.array(queued["uniform"]))
        yield _ratio("  budget in tokens: uneven / uniform", by_tokens / uniform, most=1.02)
        for name in list(DEALERS)[1:]:
            yield _ratio(f"  uneven, {name} / deal", time_of["uneven", name] / uneven)
        yield _ratio("  uniform, rows as they lie / deal", as_trainers_do / uniform)


def unknown_speeds(seeds: int, clusters: Sequence[tuple[int, int, int]]) -> Iterator[Row]:
    """Workers of very different speed: time with learned speeds over time with known ones."""
    for prompts, workers, slots in clusters:
        ratios = np.array([_run_of_steps(prompts, workers, slots, seed) for seed in range(seeds)])
        yield _ratio(f"{prompts:,} x 8 on {workers:,} of {slots}: speeds learned / known", ratios[:, 0], most=1.1)
        yield _ratio("  without the first step", ratios[:, 1])
        yield _ratio("  all taken for alike / known", ratios[:, 2])


def _run_of_steps(prompts: int, workers: int, slots: int, seed: int) -> tuple[float, float, float]:
    """Time of a run with learned speeds, and with equal ones, over its time with the true ones."""
    random = np.random.default_rng([2, seed])
    truth = np.exp(random.uniform(0, np.log(8), workers))
    batch, learned = make_batch(prompts, seed), WorkerSpeeds(workers)
    times = np.zeros((3, LEARNING_STEPS))
    for step in range(LEARNING_STEPS):
        # Speeds vary from step to step, as on shared machines; every step has other answers.
        today = truth * random.lognormal(-0.005, 0.1, workers)
        fresh = batch.again(step)
        for row, speeds in enumerate((truth, learned.optimistic(), np.ones(workers))):
            dealt = deal(batch.plans["uneven"], workers, batch.expected_P, step, speeds)
            done_W, work_W = generate(dealt, fresh, slots, today)
            times[row, step] = done_W.max()
            if row == 1:
                learned.observe(work_W, work_W / today)
    known, found, alike = times.sum(axis=1)
    return found / known, times[1, 1:].sum() / times[0, 1:].sum(), alike / known


def whole_tasks(seeds: int) -> Iterator[Row]:
    """Equal tasks of random times on workers of unknown speed, dealt whole (ATA): over the dealer that knows them."""
    for tasks, workers in WHOLE:
        ratios = np.array([_run_of_tasks(tasks, workers, seed) for seed in range(seeds)])
        bound = 1 + 4 * np.log(tasks)
        yield _ratio(f"{tasks} whole tasks on {workers}: speeds learned / known", ratios[:, 0], most=bound)
        yield _ratio("  the same number for each / known", ratios[:, 1])


def _run_of_tasks(tasks: int, workers: int, seed: int) -> tuple[float, float]:
    """Total time with learned speeds, and with equal numbers of tasks, over that with known speeds."""
    random = np.random.default_rng([4, seed])
    mean_W, learned = np.exp(random.uniform(0, np.log(8), workers)), WorkerSpeeds(workers)
    equal = np.diff(np.arange(workers + 1) * tasks // workers)
    times = np.zeros(3)
    for _ in range(LEARNING_STEPS):
        dealt = deal_tasks(tasks, mean_W), deal_tasks(tasks, 1 / learned.optimistic()), equal
        for row, counts_W in enumerate(dealt):
            # The time of n tasks of exponential length is a gamma variable.
            seconds_W = mean_W * random.gamma(np.maximum(counts_W, 1))
            times[row] += (seconds_W * (counts_W > 0)).max()
            if row == 1:
                learned.observe(counts_W.astype(np.float64), seconds_W)
    return times[1] / times[0], times[2] / times[0]


def _ratio(what: str, ratios: FloatArray, most: float | None = None) -> Row:
    """The median over seeds with its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, ratios.size))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Row(what, float(np.median(ratios)), "times", most=most, note=f"{low:.3f} to {high:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure few seeds and small sizes")
    parser.add_argument("--step", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(large_step(*options.step)))
        return
    clusters = CLUSTERS[:1] if options.quick else CLUSTERS
    where, seeds = machine(), 3 if options.quick else 21
    print(f"{where}\n\n{table([*costs(options.quick)])}\n")
    print(f"{seeds} seeds: median, and its 95 % interval\n")
    print(table([*makespans(seeds, clusters), *unknown_speeds(min(seeds, 11), clusters), *whole_tasks(seeds)]))


if __name__ == "__main__":
    main()
