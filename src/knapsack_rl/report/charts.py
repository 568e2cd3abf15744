"""What happened over time: learning curves, shares of mixed groups, and how large the groups were."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.report.runs import HELDOUT, TRAIN, Run, drawable
from knapsack_rl.report.svg import MUTED, label_ends, panels, to_svg

TITLES = {HELDOUT: "Held-out pass rate", TRAIN: "Pass rate on training prompts"}
# At most this many columns of a heat map: more would be thinner than a pixel.
_COLUMNS = 64
_COUNT_EDGES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def learning_curves(runs: Sequence[Run]) -> str:
    """Pass rates against rollouts spent: evaluations where there are any, else what the steps showed."""
    found = {name: None for run in runs for e in run.trace.evals for name, v in e.metrics.items() if not np.isnan(v)}
    metrics = [name for name in TITLES if name in found] or sorted(found)[:2]
    figure, axes = panels(max(len(metrics), 1))
    for ax, metric in zip(axes, metrics, strict=False):
        _lines(ax, runs, [run.curve(metric) for run in runs], markers=True)
        ax.set_title(TITLES.get(metric, drawable(metric)))
    if not metrics:
        _lines(axes[0], runs, [(run.rollouts_S, smooth(run.observed_S)) for run in runs])
        axes[0].set_title("Observed pass rate of each step's prompts")
    for ax in axes:
        _rollout_axis(ax)
    return to_svg(figure)


def mixed_shares(runs: Sequence[Run]) -> str:
    """Share of prompts and of rollouts with a gradient, smoothed over a few steps."""
    figure, axes = panels(2, sharey=True)
    pairs = (
        ("frac_prompts_mixed", "Share of prompts in mixed groups"),
        ("frac_rollouts_mixed", "Share of rollouts in mixed groups"),
    )
    for ax, (name, title) in zip(axes, pairs, strict=True):
        ax.set_ylim(0, 1)
        for run in runs:
            ax.plot(run.rollouts_S, run.metrics[name], color=run.colour, alpha=0.18, linewidth=0.9)
        _lines(ax, runs, [(run.rollouts_S, smooth(run.metrics[name])) for run in runs])
        ax.set_title(title)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _rollout_axis(ax)
    return to_svg(figure)


def count_maps(runs: Sequence[Run]) -> str:
    """A heat map per run: of the prompts of a step, what share got how many rollouts."""
    largest = max(run.largest for run in runs)
    edges = [edge for edge in _COUNT_EDGES if edge <= largest]
    edges.append(max(largest, 2) + 1)
    figure, axes = panels(len(runs), height=3.3, sharey=True)
    for ax, run in zip(axes, runs, strict=True):
        shares, columns = _count_shares(run, np.array(edges))
        hue = to_rgb(run.colour)
        fade = LinearSegmentedColormap.from_list("fade", [(*hue, 0.0), (*hue, 0.45), (*hue, 1.0)])
        # Without interpolation the cells are one small image in the page, and stay sharp at any size.
        extent = (columns[0], columns[-1], 0, len(edges) - 1)
        ax.imshow(shares, cmap=fade, vmin=0, vmax=1, extent=extent, origin="lower", aspect="auto", interpolation="none")
        ax.set_title(run.label, color=run.colour)
        ax.set_xlabel("generation step")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_yticks(np.arange(len(edges) - 1) + 0.5, _bin_names(edges))
        ax.tick_params(length=0)
        ax.grid(visible=False)
    axes[0].set_ylabel("rollouts of a prompt")
    return to_svg(figure)


def smooth(values: FloatArray) -> FloatArray:
    """Mean over a window of a twentieth of the run, NaN left out, shorter at the ends."""
    half = max(values.size // 40, 1 if values.size > 4 else 0)
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(values.size)
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, values.size)
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _lines(
    ax: Axes, runs: Sequence[Run], curves: Sequence[tuple[FloatArray | IntArray, FloatArray]], markers: bool = False
) -> None:
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
    ax.xaxis.set_major_locator(MaxNLocator(5))
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
