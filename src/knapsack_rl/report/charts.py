"""The figures of the report: learning curves, mixed groups, rollouts per prompt, and calibration of the beliefs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from knapsack_rl.metrics import mixed_probability
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.report.runs import HELDOUT, TRAIN, Run, drawable
from knapsack_rl.report.svg import END_LABELS, MUTED, label_ends, panel, panel_with_scale, to_svg
from knapsack_rl.values import knapsack_value

# x and y of the points of a line.
Curve: TypeAlias = tuple[FloatArray | IntArray, FloatArray]

TITLES = {HELDOUT: "Held-out pass rate", TRAIN: "Pass rate on training prompts"}
# At most this many columns of a heat map: more would be thinner than a pixel.
_COLUMNS = 64
_COUNT_EDGES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Points of a scatter plot: enough to show the shape, few enough for a small page.
_POINTS = 600
# Marks of the heat map's scale, as shares.
_SCALE = (0.01, 0.1, 0.25, 0.5, 1.0)
_BINS = np.linspace(0, 1, 11)


def learning_curves(runs: Sequence[Run]) -> list[str]:
    """Draw pass rates against rollouts spent: evaluations where there are any, else the observed rates of the steps."""
    found = {name: None for run in runs for e in run.trace.evals for name, v in e.metrics.items() if not np.isnan(v)}
    metrics = [name for name in TITLES if name in found] or sorted(found)[:2]
    charts: list[tuple[str, list[Curve]]]
    charts = [(TITLES.get(name, drawable(name)), [run.curve(name) for run in runs]) for name in metrics]
    if not charts:
        title = "Observed pass rate of each step's prompts"
        charts = [(title, [(run.rollouts_S, smooth(run.observed_S)) for run in runs])]
    drawings = []
    for title, curves in charts:
        figure, ax = panel(right=END_LABELS)
        ax.set_title(title)
        _lines(ax, runs, curves, markers=bool(metrics))
        _rollout_axis(ax)
        drawings.append(to_svg(figure))
    return drawings


def mixed_shares(runs: Sequence[Run]) -> list[str]:
    """Draw the shares of prompts and of rollouts in mixed groups, smoothed over a few steps."""
    drawings = []
    for name, title in (
        ("frac_prompts_mixed", "Share of prompts in mixed groups"),
        ("frac_rollouts_mixed", "Share of rollouts in mixed groups"),
    ):
        figure, ax = panel(right=END_LABELS)
        ax.set_ylim(0, 1)
        ax.set_title(title)
        for run in runs:
            ax.plot(run.rollouts_S, run.metrics[name], color=run.colour, alpha=0.18, linewidth=0.9)
        _lines(ax, runs, [(run.rollouts_S, smooth(run.metrics[name])) for run in runs])
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _rollout_axis(ax)
        drawings.append(to_svg(figure))
    return drawings


def count_maps(runs: Sequence[Run]) -> list[str]:
    """Draw a heat map per run: the share of a step's prompts by number of rollouts and step, with its scale."""
    largest = max(run.largest for run in runs)
    edges = [edge for edge in _COUNT_EDGES if edge <= largest]
    edges.append(max(largest, 2) + 1)
    every = 1 + len(edges) // 13  # names of rows need room
    drawings = []
    for run in runs:
        figure, ax, scale = panel_with_scale()
        shares, columns = _count_shares(run, np.array(edges))
        hue = to_rgb(run.colour)
        # A share of 0 is blank, and the smallest one is visible: one large group among hundreds is to be seen.
        fade = LinearSegmentedColormap.from_list("fade", [(*hue, 0.22), (*hue, 1.0)]).with_extremes(bad=(0, 0, 0, 0))
        style: Any = {"cmap": fade, "norm": PowerNorm(0.5, 0, 1), "aspect": "auto", "origin": "lower"}
        # Without interpolation the cells are one small image in the page, and stay sharp at any size.
        style["interpolation"] = "none"
        ax.imshow(np.where(shares > 0, shares, np.nan), extent=(columns[0], columns[-1], 0, len(edges) - 1), **style)
        ax.set_title(run.label, color=run.colour)
        ax.set_xlabel("generation step")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_yticks(np.arange(len(edges) - 1)[::every] + 0.5, _bin_names(edges)[::every])
        ax.set_ylabel("rollouts of a prompt")
        scale.imshow(np.linspace(0, 1, 101)[:, None] ** 2, extent=(0, 1, 0, 1), **style)
        scale.set_xticks([])
        scale.yaxis.tick_right()
        scale.set_yticks(np.sqrt(_SCALE), [f"{100 * share:g} %" for share in _SCALE])
        for each in (ax, scale):
            each.tick_params(length=0, labelsize=8.5)
            each.grid(visible=False)
        drawings.append(to_svg(figure))
    return drawings


def allocation_by_rate(runs: Sequence[Run]) -> list[str]:
    """Draw the counts of the last third of the run by success rate, over the paper's value of an average group."""
    found = [_rates_and_counts(run) for run in runs]
    highest = max(float(counts.max(initial=2)) for _, counts in found)
    drawings = []
    for run, (rates, counts) in zip(runs, found, strict=True):
        figure, ax = panel(0.15, 0.82)
        _value_curve(ax, int(np.clip(counts.mean() if counts.size else 8, 2, 512)))
        thin = np.random.default_rng(0).permutation(rates.size)[:_POINTS]
        ax.scatter(rates[thin], counts[thin], s=9, color=run.colour, alpha=0.3, linewidths=0)
        middles, means, _ = binned(rates, counts)
        ax.plot(middles, means, color=run.colour, marker="o", markersize=4)
        ax.set_title(run.label, color=run.colour)
        ax.set_xlabel("exact success rate" if run.exact else "believed success rate")
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(0, 1.06 * highest)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(visible=False, axis="x")
        ax.set_ylabel("rollouts of a prompt")
        drawings.append(to_svg(figure))
    return drawings


def calibration(runs: Sequence[Run]) -> list[str]:
    """Draw the predicted probability that a group holds successes and failures against the observed share."""
    drawings = []
    for run in runs:
        figure, ax = panel()
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
            text = f"Brier score {brier:.3f}\n(constant forecast: {base:.3f})\n{predicted.size:,} groups"
        else:
            text = "no group had a forecast"
        ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", color=MUTED, fontsize=8.5)
        ax.set_xlabel("predicted share of mixed groups")
        ax.set_ylabel("observed share")
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
        drawings.append(to_svg(figure))
    return drawings


def smooth(values: FloatArray) -> FloatArray:
    """The moving mean over a twentieth of the run, without NaN, over a shorter window at the ends."""
    half = max(values.size // 40, 1 if values.size > 4 else 0)
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(values.size)
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, values.size)
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def binned(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean x, mean y and number of points in each tenth of [0, 1] that has points; 0 and 1 are bins of their own."""
    place = np.digitize(x, _BINS[1:-1]) + 1
    place[x == 0], place[x == 1] = 0, _BINS.size
    number = np.bincount(place, minlength=_BINS.size + 1).astype(float)
    found = number > 0
    mean_x = np.bincount(place, weights=x, minlength=_BINS.size + 1)[found] / number[found]
    mean_y = np.bincount(place, weights=y, minlength=_BINS.size + 1)[found] / number[found]
    return mean_x, mean_y, number[found]


def _lines(ax: Axes, runs: Sequence[Run], curves: Sequence[Curve], markers: bool = False) -> None:
    ends = []
    for run, (x, y) in zip(runs, curves, strict=True):
        # A lone point draws no line: show it as a dot.
        dot = "o" if markers or len(x) == 1 else None
        ax.plot(x, y, color=run.colour, linestyle=run.dash, marker=dot, markersize=3.2)
        if len(x) and not np.isnan(y[-1]):
            ends.append((float(x[-1]), float(y[-1]), run.label, run.colour))
    label_ends(ax, ends)


def _rollout_axis(ax: Axes) -> None:
    ax.set_xlabel("rollouts spent")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
    ax.tick_params(color=MUTED, length=3)
    ax.grid(visible=False, axis="x")


def _count_shares(run: Run, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Share of prompts by count (rows) and step (columns), each column summing to 1, and the columns' edges."""
    columns = np.linspace(run.step_S[0], run.step_S[-1] + 1, min(len(run.steps), _COLUMNS) + 1)
    table = np.zeros((len(edges) - 1, columns.size - 1))
    for step in run.steps:
        column = min(int(np.searchsorted(columns, step.plan.step, side="right")) - 1, columns.size - 2)
        counts = step.plan.counts_P[step.plan.counts_P > 0]
        table[:, column] += np.histogram(counts, bins=edges)[0]
    total = table.sum(axis=0)
    return np.divide(table, total, out=np.full_like(table, np.nan), where=total > 0), columns


def _bin_names(edges: Sequence[int]) -> list[str]:
    return [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(edges)]


def _rates_and_counts(run: Run) -> tuple[FloatArray, FloatArray]:
    """Success rate and planned count of the prompts in the last third of the steps.

    Rates are exact where the last evaluation before the step has them, else those of the plan's belief.
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
    """Draw the value by success rate, on an axis of its own at the right."""
    behind = ax.twinx()
    behind.set_zorder(ax.get_zorder() - 1)
    ax.patch.set_visible(False)
    rates = np.linspace(0, 1, 101)
    value = knapsack_value(rates, count)[:, count]
    behind.fill_between(rates, value, color=MUTED, alpha=0.16, linewidth=0)
    behind.set_ylim(0, 1.15 * value.max())
    behind.set_ylabel(f"value of a group of {count}")
    behind.yaxis.set_major_locator(MaxNLocator(3))
    behind.spines["left"].set_visible(False)
    behind.spines["right"].set_visible(True)
    behind.grid(visible=False)


def _predictions(run: Run) -> tuple[FloatArray, FloatArray]:
    """Predicted probability of a mixed group and the outcome (0 or 1), of every group with answers and a forecast."""
    predicted, happened = [], []
    for step in run.steps:
        plan, outcomes = step.plan, step.outcomes
        chance = mixed_probability(plan.success_rates_P, plan.pseudo_count_P, outcomes.attempts_P)
        mixed = (outcomes.successes_P > 0) & (outcomes.successes_P < outcomes.attempts_P)
        use = (outcomes.attempts_P > 0) & ~np.isnan(chance)
        predicted.append(chance[use])
        happened.append(mixed[use].astype(float))
    return np.concatenate(predicted), np.concatenate(happened)
