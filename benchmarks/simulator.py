"""Validation of the simulator: ``python -m benchmarks.simulator`` prints the tables of docs/simulator.md.

Everything is seeded: all figures except processor times are the same on every machine. ``--quick`` takes
one seed a figure; ``--picture PATH`` also draws the differences of the transition matrices (needs matplotlib).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np

from benchmarks.measure import machine
from benchmarks.transitions import GROUPS, GRPO, KNAPSACK, PROMPTS, TRIES, Run, agreement, distance, simulate
from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.simulator import PRESETS, LearnerSettings, Simulation
from knapsack_arena.strategies import Batch, RolloutRequest, StepSpec, run_step
from knapsack_rl.config import AllocationConfig
from knapsack_rl.metrics import STATUSES, status
from knapsack_rl.notation import FloatArray, IntArray

EACH = 8
# One batch of 256 prompts x 8, planned on 16 rollouts of each: share of rollouts in mixed groups under uniform and
# under the published rule, then prompts with a mixed group under uniform, the published rule, and the true rates.
KNOWN: Mapping[str, tuple[float, ...]] = {
    "balanced": (0.60, 0.77, 152, 147, 151),
    "hard": (0.48, 0.72, 123, 127, 132),
    "late": (0.45, 0.79, 114, 113, 117),
}
USUAL = LearnerSettings()
LEARNERS = {
    "default": USUAL,
    "prompts weigh the same in the loss": replace(USUAL, weighting="prompt"),
    "steps proportional to the gradient (sgd)": replace(USUAL, optimizer="sgd"),
    "advantages not scaled": replace(USUAL, scale_advantages=False),
    "larger own gains": replace(USUAL, own_rate=3.0, shared_rate=0.001),
    "no own gains": replace(USUAL, own_rate=0.0),
}
# Alternatives to the default settings, one at a time.
AROUND: Mapping[str, tuple[float, ...]] = {
    "own_rate": (0.0, 0.2, 1.0, 2.0, 4.0),
    "shared_rate": (0.001, 0.003),
    "forgetting": (100.0, float("inf")),
    "noise": (0.0, 0.06),
}
RULES = ("uniform", "paper", "beta", "oracle")


def one_step(preset: str, batches: int) -> FloatArray:
    """The five figures of `KNOWN` for an untrained policy, expected over its rollouts; the mean over batches."""
    return np.mean([_one_batch(preset, seed) for seed in range(batches)], axis=0)


def _one_batch(preset: str, seed: int) -> tuple[float, ...]:
    simulation = Simulation(PRESETS[preset](GROUPS, seed), seed=seed)
    ids, rates_P = simulation.prompt_ids, simulation.success_rates()
    published = AllocationConfig(rule="paper").make_allocator()
    published.observe(simulation.generate(RolloutRequest(ids, np.full(GROUPS, TRIES))))
    oracle = make_strategy("oracle", RuleContext(truth=simulation.success_rates))
    known = run_step(oracle, StepSpec(0, GROUPS, GROUPS * EACH, lambda k: ids[:k]), simulation.generate)
    uniform = mixed_shares(rates_P, np.full(GROUPS, EACH))
    planned = mixed_shares(rates_P, published.plan(ids, GROUPS * EACH, 1).counts_P)
    best = mixed_shares(rates_P, known.batch.outcomes.counts_P)
    return (uniform[0], planned[0], *(GROUPS * shares[1] for shares in (uniform, planned, best)))


def mixed_shares(rates_P: FloatArray, counts_P: IntArray) -> tuple[float, float]:
    """Expected shares of rollouts, and of prompts, in mixed groups."""
    chance_P = 1 - rates_P**counts_P - (1 - rates_P) ** counts_P
    return float(chance_P @ counts_P / counts_P.sum()), float(chance_P.mean())


def populations() -> Iterable[Sequence[object]]:
    for preset, make in PRESETS.items():
        rates_P = Simulation(make(PROMPTS, 0), seed=0).success_rates()
        seen_P = np.random.default_rng(0).binomial(TRIES, rates_P) / TRIES
        shares = np.bincount(status(seen_P), minlength=len(STATUSES)) / PROMPTS
        yield preset, f"{rates_P.mean():.2f}", *(f"{share:.2f}" for share in shares)


def rises(batches: int) -> Iterable[Sequence[object]]:
    for preset in PRESETS:
        got = one_step(preset, batches)
        ours = f"{got[0]:.2f} → {got[1]:.2f}", f"{got[2]:.0f} → {got[3]:.0f}", f"{got[4]:.0f}"
        want = KNOWN.get(preset)
        if want is None:
            yield preset, "", ours[0], "", ours[1], "", ours[2]
        else:
            yield preset, f"{want[0]:.2f} → {want[1]:.2f}", ours[0], f"{want[2]} → {want[3]}", ours[1], want[4], ours[2]


def whole_runs(seeds: int) -> Iterable[Sequence[object]]:
    """Shares after the first pass, in which no prompt was seen before, and success rates at the end."""
    first_pass = PROMPTS // GROUPS + 1
    for preset in PRESETS:
        for rule in ("uniform", "paper"):
            runs = [simulate(rule, preset, each=EACH, seed=seed) for seed in range(seeds)]
            cells = [
                np.mean([run.rollouts[first_pass:] for run in runs]),
                np.mean([run.prompts[first_pass:] for run in runs]),
                np.mean([run.before_P.mean() for run in runs]),
                np.mean([run.after_P.mean() for run in runs]),
                np.mean([run.held_out for run in runs]),
            ]
            yield preset, rule, *(f"{cell:.3f}" for cell in cells), max(run.most for run in runs)


def learners(seeds: int) -> Iterable[Sequence[object]]:
    """Mean success rate after a run, on trained and on held-out prompts: uniform's, and differences of the others."""
    for name, settings in LEARNERS.items():
        ends = [[(run.after_P.mean(), run.held_out) for run in _runs(rule, EACH, seeds, settings)] for rule in RULES]
        means = np.mean(ends, axis=1)
        more = means[1:] - means[0]
        yield name, f"{means[0, 0]:.3f} / {means[0, 1]:.3f}", *(f"{own:+.3f} / {held:+.3f}" for own, held in more)


def fits() -> Iterable[Sequence[object]]:
    """Distance of uniform runs from GRPO's printed matrix when one setting is changed; one seed."""
    for field, values in AROUND.items():
        for value in (*values, getattr(USUAL, field)):
            run = simulate("uniform", each=TRIES, settings=replace(USUAL, **{field: value}))
            ends = f"{run.after_P.mean():.3f}", f"{run.held_out:.3f}"
            yield field, f"{value:g}", f"{distance(run.by_new_rollouts(), GRPO):.1f}", *ends


def _runs(rule: str, each: int, seeds: int, settings: LearnerSettings | None = None) -> list[Run]:
    return [simulate(rule, each=each, seed=seed, settings=settings) for seed in range(seeds)]


def matrices(seeds: int) -> dict[str, FloatArray]:
    """The mean matrices of uniform and published runs, by new rollouts and by the runs' own."""
    uniform, published = _runs("uniform", TRIES, seeds), _runs("paper", TRIES, seeds)
    stuck = [run.ever_solved_P[run.after_P < 0.5 / TRIES].mean() for run in published]
    print(f"\nOf prompts that end below 1/{2 * TRIES}, the published rule's run had solved {np.mean(stuck):.0%} once.")
    ends = [np.mean([run.after_P.mean() for run in runs]) for runs in (uniform, published)]
    print(f"At {TRIES} rollouts a prompt the mean p ends at {ends[0]:.3f} (uniform) and {ends[1]:.3f} (published).")
    return {
        "uniform, new rollouts": np.mean([run.by_new_rollouts() for run in uniform], axis=0),
        "published, new rollouts": np.mean([run.by_new_rollouts() for run in published], axis=0),
        "uniform, own rollouts": np.mean([run.by_own_rollouts() for run in uniform], axis=0),
        "published, own rollouts": np.mean([run.by_own_rollouts() for run in published], axis=0),
    }


def matrix_table(found: Mapping[str, FloatArray]) -> Iterable[Sequence[object]]:
    printed = {"printed: GRPO": GRPO, "printed: Knapsack": KNAPSACK}
    for name, matrix in {**printed, **found}.items():
        for row, cells in zip(STATUSES, matrix, strict=True):
            yield name, row, *(f"{cell:.1f}" for cell in cells)


def verdicts(found: Mapping[str, FloatArray]) -> Iterable[Sequence[object]]:
    for how in ("new rollouts", "own rollouts"):
        uniform, published = found[f"uniform, {how}"], found[f"published, {how}"]
        same, decided = agreement(published - uniform)
        apart = f"{distance(uniform, GRPO):.1f}", f"{distance(published, KNAPSACK):.1f}"
        yield how, *apart, f"{same} of {decided}"
    yield "(the printed two)", "", f"{distance(GRPO, KNAPSACK):.1f} from each other", ""


def cost(steps: int = 300) -> float:
    """Processor time of a step's rollouts and its training, in milliseconds."""
    simulation = Simulation(PRESETS["balanced"](PROMPTS, 0), seed=0)
    counts = np.full(GROUPS, EACH)
    began = process_time()
    for _ in range(steps):
        simulation.train(Batch(simulation.generate(RolloutRequest(simulation.take(GROUPS), counts))))
    return (process_time() - began) / steps * 1e3


def draw(found: Mapping[str, FloatArray], path: Path) -> None:
    """Draw the change of each cell by the published rule, printed and simulated, side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "knapsack-rl", "font.size": 9})
    import matplotlib.pyplot as plt

    panels = {
        "printed in CoBA-RL's paper": KNAPSACK - GRPO,
        "simulated, by the runs' own rollouts": found["published, own rollouts"] - found["uniform, own rollouts"],
        "simulated, by 16 new rollouts": found["published, new rollouts"] - found["uniform, new rollouts"],
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    names = [name.replace("extremely", "ext.") for name in STATUSES]
    for axis, (title, change) in zip(axes, panels.items(), strict=True):
        axis.imshow(change, cmap="RdBu", vmin=-16, vmax=16)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(5), names, rotation=30, ha="right")
        axis.set_yticks(range(5), names)
        for (row, column), cell in np.ndenumerate(change):
            ink = "white" if abs(cell) > 10 else "black"
            axis.text(column, row, f"{cell:+.1f}", ha="center", va="center", color=ink)
    axes[0].set_ylabel("before training")
    figure.supxlabel("after training: published rule less uniform, percentage points", fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def show(title: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, line by line."""
    heads = columns.split(", ")
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed a figure")
    parser.add_argument("--picture", type=Path, help="write a picture of the matrices' differences (SVG)")
    options = parser.parse_args()
    seeds = 1 if options.quick else 3
    by_status = ", ".join(STATUSES)
    show("Presets: shares by 16 rollouts", f"preset, mean p, {by_status}", populations())
    heads = "rollouts: known, simulated, prompts: known, simulated, with true p: known, simulated"
    show("One step", f"preset, {heads}", rises(20 if options.quick else 100))
    found = matrices(seeds)
    show("Transitions, percent of a row", f"matrix, before, {by_status}", matrix_table(found))
    show(
        "Transitions, compared", "measured by, GRPO off by, Knapsack off by, changes of the same sign", verdicts(found)
    )
    heads = "rollouts mixed, prompts mixed, p before, p after, held out, largest group"
    show("Whole runs of 1,000 steps", f"preset, rule, {heads}", whole_runs(seeds))
    show("Settings around ours", "setting, value, GRPO off by, p after, held out", fits())
    show("Other learners (balanced)", f"learner, {', '.join(RULES)}", learners(seeds))
    print(f"\n{cost():.2f} ms of processor time a step of {GROUPS} x {EACH} of {PROMPTS:,} prompts ({machine()})")
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
