"""What was believed: where the rollouts went by success rate, and whether the beliefs came true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from knapsack_rl.metrics import mixed_probability
from knapsack_rl.notation import FloatArray
from knapsack_rl.report.runs import Run
from knapsack_rl.report.svg import MUTED, panels, to_svg
from knapsack_rl.values import knapsack_value

# Points of a scatter: enough to see the shape, few enough for a small page.
_POINTS = 600
_BINS = np.linspace(0, 1, 11)


def allocation_by_rate(runs: Sequence[Run]) -> str:
    """Counts of the run's last third against success rate, over the paper's value of an average group."""
    figure, axes = panels(len(runs), height=3.3, sharey=True)
    highest = 2.0
    for ax, run in zip(axes, runs, strict=True):
        rates, counts = _rates_and_counts(run)
        highest = max(highest, float(counts.max(initial=2)))
        _value_curve(ax, int(np.clip(counts.mean() if counts.size else 8, 2, 512)))
        thin = np.random.default_rng(0).permutation(rates.size)[:_POINTS]
        ax.scatter(rates[thin], counts[thin], s=9, color=run.colour, alpha=0.3, linewidths=0)
        middles, means, _ = binned(rates, counts)
        ax.plot(middles, means, color=run.colour, marker="o", markersize=4)
        ax.set_title(run.label, color=run.colour)
        ax.set_xlabel("exact success rate" if run.exact else "believed success rate")
        ax.set_xlim(-0.02, 1.02)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(visible=False, axis="x")
    axes[0].set_ylim(0, 1.06 * highest)
    axes[0].set_ylabel("rollouts of a prompt")
    return to_svg(figure)


def calibration(runs: Sequence[Run]) -> str:
    """Predicted chance that a group holds successes and failures, against how often it did."""
    figure, axes = panels(len(runs), height=3.1, sharey=True)
    for ax, run in zip(axes, runs, strict=True):
        predicted, happened = _predictions(run)
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        middles, shares, numbers = binned(predicted, happened)
        ax.plot(middles, shares, color=run.colour, linewidth=1.2, alpha=0.6)
        sizes = 14 + 130 * numbers / max(numbers.max(initial=1), 1)
        ax.scatter(middles, shares, s=sizes, color=run.colour, alpha=0.85, linewidths=0)
        ax.set_title(run.label, color=run.colour)
        if predicted.size:
            brier = float(((predicted - happened) ** 2).mean())
            base = float(happened.mean() * (1 - happened.mean()))
            text = f"Brier {brier:.3f}\n(always the mean: {base:.3f})\n{predicted.size:,} groups"
        else:
            text = "no group had a forecast"
        ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", color=MUTED, fontsize=8.5)
        ax.set_xlabel("predicted share of mixed groups")
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
    axes[0].set_ylabel("observed share")
    return to_svg(figure)


def binned(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean x, mean y and number of points in each tenth of [0, 1] that holds any; 0 and 1 themselves stand apart."""
    place = np.digitize(x, _BINS[1:-1]) + 1
    place[x == 0], place[x == 1] = 0, _BINS.size
    number = np.bincount(place, minlength=_BINS.size + 1).astype(float)
    found = number > 0
    mean_x = np.bincount(place, weights=x, minlength=_BINS.size + 1)[found] / number[found]
    mean_y = np.bincount(place, weights=y, minlength=_BINS.size + 1)[found] / number[found]
    return mean_x, mean_y, number[found]


def _rates_and_counts(run: Run) -> tuple[FloatArray, FloatArray]:
    """Success rate and planned count of the prompts in the last third of the steps.

    Exact rates, where the last evaluation before a step knows them, else the belief that the plan was made on.
    """
    rates: list[float] = []
    counts: list[float] = []
    for step in run.steps[-max(len(run.steps) // 3, 1) :]:
        plan = step.plan
        known: Mapping[str, float] = {}
        if run.exact:
            before = [evaluation for evaluation in run.exact if evaluation.step <= plan.step] or run.exact[:1]
            known = before[-1].rates or {}
        for i, prompt_id in enumerate(plan.prompt_ids):
            rate = known.get(prompt_id, np.nan) if run.exact else float(plan.success_rates_P[i])
            if not np.isnan(rate):
                rates.append(rate)
                counts.append(float(plan.counts_P[i]))
    return np.array(rates), np.array(counts)


def _value_curve(ax: Axes, count: int) -> None:
    """The shape of the value over success rates, on an axis of its own without numbers."""
    behind = ax.twinx()
    behind.set_zorder(ax.get_zorder() - 1)
    ax.patch.set_visible(False)
    rates = np.linspace(0, 1, 101)
    value = knapsack_value(rates, count)[:, count]
    behind.fill_between(rates, value, color=MUTED, alpha=0.16, linewidth=0)
    behind.set_ylim(0, 1.15 * value.max())
    behind.set_axis_off()


def _predictions(run: Run) -> tuple[FloatArray, FloatArray]:
    """Predicted chance of a mixed group and whether it was one, for every group with answers and a forecast."""
    predicted, happened = [], []
    for step in run.steps:
        plan, outcomes = step.plan, step.outcomes
        chance = mixed_probability(plan.success_rates_P, plan.strength_P, outcomes.attempts_P)
        mixed = (outcomes.successes_P > 0) & (outcomes.successes_P < outcomes.attempts_P)
        use = (outcomes.attempts_P > 0) & ~np.isnan(chance)
        predicted.append(chance[use])
        happened.append(mixed[use].astype(float))
    return np.concatenate(predicted), np.concatenate(happened)
