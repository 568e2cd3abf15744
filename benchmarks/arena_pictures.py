"""The pictures of docs/arena.md, as files with colours of their own: dark on white."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.arena_tables import OURS, counted
from knapsack_arena.compare.metrics import RATE_EDGES
from knapsack_arena.compare.ranking import ALL, ORACLES, rank
from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import BASELINE, ORACLE
from knapsack_rl.report.svg import panels, style, to_svg

# An <img> cannot use the colours of its page.
_INK = {"currentColor": "#33312e", "var(--muted)": "#6b675f", "var(--rule)": "#e3e0da"}
_OURS, _OTHER, _ORACLE = "#2563a8", "#8b8780", "#b8590a"
_LINES = {BASELINE: "#8b8780", "paper": "#b8590a", "beta": "#2563a8", "calibrated": "#5a9bd8",
          "calibrated-pool": "#0d7f69",
          ORACLE: "#33312e"}  # fmt: skip
_MORE = ("#9249c9", "#c03a6b")


def _file(figure: Figure) -> str:
    svg = to_svg(figure)
    for name, colour in _INK.items():
        svg = svg.replace(name, colour)
    head, _, body = svg.partition(">")
    return f'{head}><rect width="100%" height="100%" fill="white"/>{body}\n'


def draw_ranking(found: Mapping[str, Results]) -> str:
    """Points ahead of uniform over all presets with intervals, at the same rollouts and at the same tokens."""
    rollouts = found["rollouts"]
    order = [ranked.rule for ranked in rank(rollouts) if ranked.complete and ranked.rule != BASELINE][::-1]
    with style():
        figure, axes = panels(2, height=1.1 + 0.24 * len(order), sharey=True)
        for axis, (name, results) in zip(axes, found.items(), strict=True):
            _dots(axis, results, order)
            axis.set_title(f"at the same {name}")
            axis.set_xlabel("points of mean success rate ahead of uniform, all presets")
        axes[0].set_yticks(range(len(order)), order)
        for label, rule in zip(axes[0].get_yticklabels(), order, strict=True):
            label.set(color=_colour(rule), weight="bold" if rule in OURS else "normal")
        return _file(figure)


def _dots(axis: Axes, results: Results, order: list[str]) -> None:
    ranking = {ranked.rule: ranked for ranked in rank(results)}
    axis.axvline(0, color=_OTHER, linewidth=1)
    axis.grid(visible=False, axis="y")
    for y, rule in enumerate(order):
        if rule not in ranking:
            continue
        figure, colour = ranking[rule].ahead[ALL], _colour(rule)
        means = [100 * ranking[rule].ahead[preset].mean for preset in results.presets]
        axis.scatter(means, [y] * len(means), s=9, color=colour, alpha=0.35, linewidths=0)
        half = 0.0 if np.isnan(figure.half) else 100 * figure.half
        axis.errorbar(100 * figure.mean, y, xerr=half, fmt="o", markersize=4.5, color=colour, linewidth=1.4)


def _colour(rule: str) -> str:
    return _OURS if rule in OURS else _ORACLE if rule in ORACLES else _OTHER


def draw_allocation(results: Results) -> str:
    """Mean size of a group by the true success rate at the time, in the last third of the budget, preset by preset."""
    best = [ranked.rule for ranked in counted(rank(results)) if ranked.rule not in _LINES]
    colours = {rule: colour for rule, colour in _LINES.items() if rule in results.rules}
    colours |= dict(zip(best, _MORE, strict=False))
    with style():
        figure, axes = panels(len(results.presets), height=3.4, width=12.0, sharey=True)
        for axis, preset in zip(axes, results.presets, strict=True):
            for rule, colour in colours.items():
                bins, sizes = _sizes(results.frame, rule, preset)
                axis.plot(bins, sizes, color=colour, label=rule, marker="o", markersize=2.5, linewidth=1.4)
            axis.set_title(preset)
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ticks = [0, 3, 7, 11, 13]
            axis.set_xticks(ticks, [f"{RATE_EDGES[i]:g}" for i in ticks])
        axes[0].set_ylabel("rollouts of a group")
        figure.supxlabel("true success rate (lower edge of its bin)", fontsize=9.5, color="#6b675f")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(colours))
        return _file(figure)


def _sizes(frame: pl.DataFrame, rule: str, preset: str) -> tuple[list[int], list[float]]:
    """Bins of the rate, and the mean count of the groups in each that got any rollouts."""
    there = pl.col("rule") == rule, pl.col("preset") == preset, pl.col("point") == 100, pl.col("y") > 0
    sums = (
        frame.filter(*there, pl.col("metric").is_in(["allocation", "allocation_rollouts"]))
        .group_by("x", "metric")
        .agg(pl.col("value").sum())
        .pivot("metric", index="x", values="value")
        .sort("x")
    )
    if not sums.height:
        return [], []
    bins = np.searchsorted(RATE_EDGES, sums["x"].to_numpy()).tolist()
    return bins, (sums["allocation_rollouts"] / sums["allocation"]).to_list()
