"""Measure every figure of README and print one table. A missed target is printed, and fails nothing."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import process_time

import numpy as np

from benchmarks.authors import solve_by_the_authors_method
from benchmarks.measure import Row, elsewhere, machine, seconds, table
from benchmarks.subjects import names, outcomes_of
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.values import knapsack_marginals, knapsack_value

LOW, HIGH = 2, 128


def against_the_authors(prompts: int, budget: int, least_ratio: float, most_ms: float | None) -> Iterator[Row]:
    """The whole plan, and the solver alone on the authors' own objective, against their dynamic programme.

    Ratios are of processor time: on a busy machine a long run is interrupted more often than a short one.
    """
    walls, plans, solves, theirs = [], [], [], []
    for seed in range(3):
        allocator, ids = KnapsackAllocator(), names(0, prompts)
        allocator.observe(outcomes_of(ids, 8, 0, seed))
        rates = allocator.beliefs.forecast(ids, 1).success_rates_P.astype(np.float32).astype(np.float64)
        walls += seconds(lambda: allocator.plan(ids, budget, 1), 100)  # noqa: B023  called at once
        plans += seconds(lambda: allocator.plan(ids, budget, 1), 100, process_time)  # noqa: B023
        limits = np.full(prompts, LOW), np.full(prompts, HIGH)

        def marginals(rows: IntArray, stop: int, rates: FloatArray = rates) -> FloatArray:
            return knapsack_marginals(rates[rows], stop)

        solves += seconds(lambda: solve(marginals, budget, *limits), 100, process_time)  # noqa: B023
        if seed == 0:  # compiles, and checks that both reach the same optimum
            counts = solve_by_the_authors_method(rates, budget, LOW, HIGH)
            found = float(knapsack_value(rates, HIGH)[np.arange(prompts), counts].sum())
            best = solve(marginals, budget, *limits).value
            assert abs(found / best - 1) < 1e-5, f"the methods disagree: {found} and {best}"
        theirs += seconds(lambda: solve_by_the_authors_method(rates, budget, LOW, HIGH), 1, process_time)  # noqa: B023
    wall, plan, alone, other = (float(np.median(times)) for times in (walls, plans, solves, theirs))
    size = f"{prompts} x {budget:,}"
    yield Row(f"plan {size}", wall * 1e3, "ms", most=most_ms, note=f"best {min(walls) * 1e3:.3g}")
    yield Row(f"solve {size}, without beliefs", alone * 1e3, "ms", note=f"best {min(solves) * 1e3:.3g}")
    yield Row(f"the authors' method, {size}", other * 1e3, "ms", note="processor time; Numba, compiled before")
    yield Row("  the plan is faster by", other / plan, "times", least=least_ratio)
    yield Row("  the solver alone by", other / alone, "times")


def large(quick: bool) -> Iterator[Row]:
    found = elsewhere("large_plan", 100_000, 1_000_000, 9)
    note = f"best {found['best'] * 1e3:.0f}"
    yield Row("plan 100,000 x 1,000,000", found["seconds"] * 1e3, "ms", most=250, note=note)
    own = found["peak"] - found["baseline"]
    yield Row("  peak memory", found["peak"], "MB", most=300, note=f"{own:.0f} without interpreter and numpy")
    for prompts in (10_000, 30_000) if quick else (10_000, 30_000, 300_000):
        other = elsewhere("large_plan", prompts, 10 * prompts, 7)
        times = f"{other['seconds'] / found['seconds']:.2f} times the time for {prompts / 100_000:g} times the prompts"
        yield Row(f"plan {prompts:,} x {10 * prompts:,}", other["seconds"] * 1e3, "ms", note=times)
    for budget in (300_000, 3_000_000):
        other = elsewhere("large_plan", 100_000, budget, 7)
        times = f"{other['seconds'] / found['seconds']:.2f} times the time for {budget / 1_000_000:g} times the budget"
        yield Row(f"plan 100,000 x {budget:,}", other["seconds"] * 1e3, "ms", note=times)


def beliefs(quick: bool) -> Iterator[Row]:
    for prompts in (17_000, 1_000_000):
        found = elsewhere("step", prompts, 300)
        what = f"observe + plan 256 x 8, {prompts:,} prompts known"
        yield Row(what, found["seconds"] * 1e3, "ms", most=2, note=f"best {found['best'] * 1e3:.3g}")
    prompts = 1_000_000 if quick else 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "beliefs.npz"
        kept = elsewhere("keep", prompts, file)
        own = f"{kept['peak'] - kept['baseline']:.0f} without interpreter and numpy"
        yield Row(f"{prompts:,} prompts: peak memory", kept["peak"], "MB", most=600, note=own)
        yield Row("  first observation of all", kept["observe"], "s")
        size = file.stat().st_size
        yield Row("  save", kept["save"], "s", most=10, note=f"{size / 2**20:.0f} MB, {size / prompts:.0f} bytes each")
        fetched = elsewhere("fetch", file)
        yield Row("  load", fetched["load"], "s", most=10, note=f"peak memory {fetched['peak']:.0f} MB")


def importing() -> Iterator[Row]:
    probe = "import sys, time; t = time.perf_counter(); import knapsack_rl; t = time.perf_counter() - t; "
    probe += "import knapsack_rl.allocator; print(t, 'torch' in sys.modules)"
    command = [sys.executable, "-c", probe]
    answers = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(7)]
    times = [float(answer[0]) for answer in answers]
    yield Row("import knapsack_rl", float(np.median(times)), "s", most=0.3, note=f"best {min(times):.3f}")
    yield Row("  times that torch was imported with it", sum(answer[1] == "True" for answer in answers), "of 7", most=0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the largest sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to a file")
    options = parser.parse_args()
    where = machine()
    # glibc maps blocks above 128 KiB anew at every allocation, until a larger one is freed: as in any training process.
    np.ones(1 << 20)
    rows = [
        *against_the_authors(256, 2048, 1000, 1.0),
        *against_the_authors(512, 8192, 4000, None),
        *large(options.quick),
        *beliefs(options.quick),
        *importing(),
    ]
    print(f"{where}\n\n{table(rows)}")
    if options.json:
        records = [asdict(row) | {"verdict": row.verdict} for row in rows]
        options.json.write_text(json.dumps({"machine": where, "rows": records}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
