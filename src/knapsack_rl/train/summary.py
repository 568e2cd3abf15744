"""The closing table: what the arms reached and what they spent, and who is ahead, if anybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from knapsack_rl.metrics import step_metrics
from knapsack_rl.report.runs import HELDOUT, TRAIN
from knapsack_rl.report.verdict import SEED_NOISE
from knapsack_rl.trace import Trace, read_trace
from knapsack_rl.train.display import number, percent, say
from knapsack_rl.train.job import TRACE
from knapsack_rl.train.progress import duration


@dataclass(frozen=True)
class ArmSummary:
    """What one arm came to.

    Attributes:
        name: the arm.
        steps: generation steps made.
        rollouts: rollouts spent.
        reward: mean reward of the first and of the last tenth of the steps.
        pass_rates: exact pass rate before and after, by metric name; empty where none was measured.
        prompts_mixed, rollouts_mixed: shares over the whole run.
        largest: largest group.
        overhead: share of the time that went into allocation, learning from outcomes and the trace.
        seconds: how long it took, since it was last started; NaN if it did not end.
        finished: whether it reached its last step.
    """

    name: str
    steps: int
    rollouts: int
    reward: tuple[float, float]
    pass_rates: dict[str, tuple[float, float]]
    prompts_mixed: float
    rollouts_mixed: float
    largest: int
    overhead: float
    seconds: float
    finished: bool


def summarize(name: str, trace: Trace) -> ArmSummary:
    """Boil a trace down.

    Raises:
        ValueError: a trace without a single step.
    """
    if not trace.steps:
        raise ValueError(f"{trace.path} holds no steps")
    measured = [step_metrics(step.plan, step.outcomes) for step in trace.steps]
    rewards = [float(np.nanmean(step.outcomes.rewards_PG)) for step in trace.steps if step.outcomes.answered_PG.any()]
    tenth = max(1, len(rewards) // 10)
    reward = (float(np.mean(rewards[:tenth])), float(np.mean(rewards[-tenth:]))) if rewards else (math.nan, math.nan)
    pass_rates = {}
    for metric in (TRAIN, HELDOUT):
        curve = [evaluation.metrics[metric] for evaluation in trace.evals if metric in evaluation.metrics]
        if curve:
            pass_rates[metric] = (curve[0], curve[-1])
    spent = sum(step.seconds.get("step", 0.0) for step in trace.steps)
    ours = sum(step.seconds.get("overhead", step.seconds.get("allocate", 0.0)) for step in trace.steps)
    return ArmSummary(
        name=name,
        steps=len(trace.steps),
        rollouts=sum(step.plan.budget for step in trace.steps),
        reward=reward,
        pass_rates=pass_rates,
        prompts_mixed=_mean([m["frac_prompts_mixed"] for m in measured]),
        rollouts_mixed=_mean([m["frac_rollouts_mixed"] for m in measured]),
        largest=max(int(step.plan.counts_P.max()) for step in trace.steps),
        overhead=ours / spent if spent else math.nan,
        seconds=math.nan if trace.seconds is None else trace.seconds,
        finished=trace.ended == "finished",
    )


def print_summary(console: Console, output: Path, arms: Sequence[str]) -> list[ArmSummary]:
    """Print the closing table of a job folder; arms without a step are left out."""
    traces = [(arm, read_trace(output / arm / TRACE)) for arm in arms if (output / arm / TRACE).is_file()]
    summaries = [summarize(arm, trace) for arm, trace in traces if trace.steps]
    if summaries:
        console.print()
        console.print(closing_table(summaries))
        for sentence in verdicts(summaries):
            say(console, sentence)
    return summaries


def closing_table(summaries: Sequence[ArmSummary]) -> Table:
    """A row for each figure and a column for each arm."""
    table = Table(header_style="bold")
    table.add_column("")
    for arm in summaries:
        table.add_column(arm.name, justify="right")
    rows: list[tuple[str, Callable[[ArmSummary], str]]] = [
        ("reward, first and last tenth of the steps", lambda arm: _change(arm.reward)),
        ("generation steps", lambda arm: str(arm.steps)),
        ("rollouts spent", lambda arm: f"{arm.rollouts:,}"),
        ("prompts with a mixed group", lambda arm: percent(arm.prompts_mixed)),
        ("rollouts in mixed groups", lambda arm: percent(arm.rollouts_mixed)),
        ("largest group", lambda arm: str(arm.largest)),
        ("allocator's share of the time", lambda arm: f"{100 * arm.overhead:.1f} %"),
        ("time", lambda arm: duration(arm.seconds)),
    ]
    if any(arm.pass_rates for arm in summaries):
        unknown = (math.nan, math.nan)
        rows[:1] = [
            ("pass rate on the training prompts, exact", lambda arm: _change(arm.pass_rates.get(TRAIN, unknown))),
            ("pass rate on held-out prompts, exact", lambda arm: _change(arm.pass_rates.get(HELDOUT, unknown))),
        ]
    for label, figure in rows:
        table.add_row(label, *[figure(arm) for arm in summaries])
    return table


def verdicts(summaries: Sequence[ArmSummary]) -> list[str]:
    """One honest sentence for each pass rate; none where there is nothing to compare."""
    unfinished = [arm.name for arm in summaries if not arm.finished]
    if unfinished:
        return [f"{' and '.join(unfinished)} did not finish: nothing to compare yet."] if len(summaries) > 1 else []
    by_name = {arm.name: arm for arm in summaries}
    uniform = by_name.get("uniform")
    sentences = []
    for arm in summaries:
        if uniform is None or arm is uniform:
            continue
        if arm.rollouts != uniform.rollouts:
            sentences.append(f"{arm.name} and uniform spent different numbers of rollouts: no comparison.")
            continue
        for metric, where in ((TRAIN, "training prompts"), (HELDOUT, "held-out prompts")):
            if metric in arm.pass_rates and metric in uniform.pass_rates:
                difference = arm.pass_rates[metric][1] - uniform.pass_rates[metric][1]
                sentences.append(f"{where}: {_verdict(arm.name, difference)}")
    if sentences:
        sentences.append("One seed is an anecdote: --seed repeats the comparison with other prompts and other samples.")
    return sentences


def _verdict(name: str, difference: float) -> str:
    if abs(difference) < SEED_NOISE:
        return f"no difference ({difference:+.3f}; less than {SEED_NOISE} lies within what another seed changes)."
    return f"{name if difference > 0 else 'uniform'} is ahead by {abs(difference):.3f} at the same number of rollouts."


def _change(values: tuple[float, float]) -> str:
    return f"{number(values[0])} -> {number(values[1])}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
