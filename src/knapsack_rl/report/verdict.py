"""What the runs amount to, in one honest sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from knapsack_rl.notation import FloatArray
from knapsack_rl.report.runs import HELDOUT, NAMES, TRAIN, Run, mean, observed_start_and_end

# What another seed changes in the embedded job's pass rates (docs/log.md): a smaller difference is none.
SEED_NOISE = 0.03
MEASURES = {HELDOUT: "held-out pass rate", TRAIN: "pass rate on training prompts"}


def verdict(runs: Sequence[Run]) -> str:
    """Compare each method with uniform groups at the same number of rollouts; without a rival, say what one run did."""
    with_steps = [run for run in runs if run.steps]
    if not with_steps:
        return "Nothing to judge yet: no generation step has been recorded."
    methods = {run.method for run in with_steps}
    rivals = [method for method in dict.fromkeys(run.method for run in with_steps) if method != "uniform"]
    if "uniform" not in methods or not rivals:
        return " ".join([*(_alone(run) for run in with_steps[:3]), "Nothing here to compare with."])
    metric = next((m for m in MEASURES if all(run.curve(m)[0].size for run in with_steps)), None)
    if metric is None:
        return (
            "No verdict: not every run was evaluated on fixed prompts, and the reward of a step's own prompts"
            " says little, because the methods see different prompts at different times."
        )
    return f"{_against_uniform(with_steps, rivals, metric)} {_caution(with_steps)}"


def _alone(run: Run) -> str:
    for metric, name in MEASURES.items():
        _, values = run.curve(metric)
        if values.size > 1:
            change = f"{name} from {values[0]:.3f} to {values[-1]:.3f}"
            break
    else:
        start, end = observed_start_and_end(run)
        change = f"observed pass rate of the step's prompts from {start:.3f} to {end:.3f}"
    return f"{run.label}: {change} over {run.rollouts:,} rollouts ({run.state})."


def _against_uniform(runs: Sequence[Run], rivals: Sequence[str], metric: str) -> str:
    """One sentence; where the runs differ in length, it is about the last point that all of them reached."""
    at = min(float(run.curve(metric)[0][-1]) for run in runs)
    theirs = float(_at(runs, "uniform", metric, at).mean())
    parts = []
    for method in rivals:
        ours = float(_at(runs, method, metric, at).mean())
        judged = _judged(ours - theirs)
        if ours - theirs >= SEED_NOISE:
            judged += _head_start(runs, method, metric, at, theirs)
        parts.append(f"{ours:.3f} with {NAMES.get(method, method)}, {judged}")
    return f"After {at:,.0f} rollouts the {MEASURES[metric]} is {theirs:.3f} with uniform groups; {'; '.join(parts)}."


def _judged(difference: float) -> str:
    if abs(difference) < SEED_NOISE:
        return f"a difference of {difference:+.3f} that another seed could make"
    return f"{'ahead' if difference > 0 else 'behind'} by {abs(difference):.3f}"


def _at(runs: Sequence[Run], method: str, metric: str, rollouts: float) -> FloatArray:
    """Each run's value at a number of rollouts, between evaluations on the straight line."""
    return np.array([np.interp(rollouts, *run.curve(metric)) for run in runs if run.method == method])


def _head_start(runs: Sequence[Run], method: str, metric: str, at: float, theirs: float) -> str:
    """After what share of the rollouts the method first stood where uniform ended."""
    firsts = []
    for run in runs:
        if run.method == method:
            rollouts, values = run.curve(metric)
            reached = np.flatnonzero(values >= theirs)
            firsts.append(float(rollouts[reached[0]]) if reached.size else math.nan)
    first = mean(np.array(firsts))
    if math.isnan(first) or not 0 < first < at:
        return ""
    return f" (first measured where uniform ended after {100 * first / at:.0f} % of the rollouts)"


def _caution(runs: Sequence[Run]) -> str:
    seeds = min(sum(run.method == method for run in runs) for method in {run.method for run in runs})
    unfinished = [run.label for run in runs if run.trace.ended != "finished"]
    words = "One run per method is an anecdote, not evidence." if seeds == 1 else f"At least {seeds} runs per method."
    return f"{words} Not finished: {', '.join(unfinished)}." if unfinished else words
