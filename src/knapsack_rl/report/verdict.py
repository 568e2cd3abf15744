"""The conclusion from the runs, in a few sentences: rules compared with uniform groups at equal numbers of rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from knapsack_rl.metrics import mean
from knapsack_rl.notation import FloatArray
from knapsack_rl.report.runs import HELDOUT, TRAIN, Run, drawable, observed_start_and_end

# Differences in the pass rates of the embedded job below this also occur between seeds (docs/log.md).
SEED_NOISE = 0.03
MEASURES = {HELDOUT: "held-out pass rate", TRAIN: "pass rate on training prompts"}


def verdict(runs: Sequence[Run]) -> list[str]:
    """Compare each rule with uniform groups at the same number of rollouts; without a pair, describe each run.

    Returns:
        One sentence or two per evaluated pass rate, then the limits of the comparison.
    """
    with_steps = [run for run in runs if run.steps]
    if not with_steps:
        return ["No comparison: no generation step has been recorded."]
    rules = dict.fromkeys(run.rule for run in with_steps)
    others = [rule for rule in rules if rule != "uniform"]
    if "uniform" not in rules or not others:
        alone = [_alone(run) for run in with_steps[:3]]
        return [*alone, "No comparison: it needs a run with uniform groups and one with another rule."]
    metrics = [metric for metric in MEASURES if all(run.curve(metric)[0].size for run in with_steps)]
    if not metrics:
        return [
            "No comparison: not every run was evaluated on fixed prompts, and the rewards of a step depend on which "
            "prompts the rule trained on."
        ]
    return [*(_against_uniform(with_steps, others, metric) for metric in metrics), _caution(with_steps)]


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


def _against_uniform(runs: Sequence[Run], others: Sequence[str], metric: str) -> str:
    """One sentence about the last number of rollouts that all runs reached."""
    at = min(float(run.curve(metric)[0][-1]) for run in runs)
    uniform = float(_at(runs, "uniform", metric, at).mean())
    parts = []
    for rule in others:
        value = float(_at(runs, rule, metric, at).mean())
        judged = _judged(value - uniform)
        if value - uniform >= SEED_NOISE:
            judged += _head_start(runs, rule, metric, at, uniform)
        parts.append(f"{value:.3f} with {drawable(rule)}, {judged}")
    return f"After {at:,.0f} rollouts the {MEASURES[metric]} is {uniform:.3f} with uniform; {'; '.join(parts)}."


def _judged(difference: float) -> str:
    if abs(difference) < SEED_NOISE:
        return f"a difference of {difference:+.3f}, which is within the noise between seeds ({SEED_NOISE})"
    return f"{'ahead' if difference > 0 else 'behind'} by {abs(difference):.3f}"


def _at(runs: Sequence[Run], rule: str, metric: str, rollouts: float) -> FloatArray:
    """Each run's value at a number of rollouts, interpolated linearly between evaluations."""
    return np.array([np.interp(rollouts, *run.curve(metric)) for run in runs if run.rule == rule])


def _head_start(runs: Sequence[Run], rule: str, metric: str, at: float, uniform: float) -> str:
    """The share of the rollouts after which the rule first reached uniform's final value."""
    firsts = []
    for run in runs:
        if run.rule == rule:
            rollouts, values = run.curve(metric)
            reached = np.flatnonzero(values >= uniform)
            firsts.append(float(rollouts[reached[0]]) if reached.size else math.nan)
    first = mean(np.array(firsts))
    if math.isnan(first) or not 0 < first < at:
        return ""
    return f" (uniform's final value was first measured after {100 * first / at:.0f} % of the rollouts)"


def _caution(runs: Sequence[Run]) -> str:
    seeds = min(sum(run.rule == rule for run in runs) for rule in {run.rule for run in runs})
    unfinished = [run.label for run in runs if run.trace.ended != "finished"]
    words = (
        "One run per rule is not evidence: repeat with other seeds."
        if seeds == 1
        else f"{seeds} or more runs per rule."
    )
    return f"{words} Not finished: {', '.join(unfinished)}." if unfinished else words
