"""Who is ahead, by how much, and how sure that is: differences from uniform on the same seeds, with t intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from knapsack_rl.compare.cells import BASELINE, ORACLE
from knapsack_rl.compare.results import Results
from knapsack_rl.notation import FloatArray

# Student's t, 97.5 % quantile, for 1, 2, 3 ... degrees of freedom; the last serves for all beyond, a little too wide.
T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
ALL = "all presets"
# Told the true success rates: measured beside the others, and never among those that win.
ORACLES: Final = (ORACLE, "oracle-pool")
_CELL, _NAME_ROOM = 17, 32  # characters of "+0.0123 ±0.0012 ▲", and at most of a rule's name before it is folded


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, which one seed does not have.

    Attributes:
        mean: of the seeds.
        half: half the width of the interval; NaN with fewer than two seeds.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 where the whole interval lies above 0, -1 where below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: FloatArray) -> Estimate:
    """Student's 95 % interval for the mean of independent values; NaN among them is left out."""
    known = values[~np.isnan(values)]
    if not known.size:
        return Estimate(float("nan"), float("nan"), 0)
    if known.size < 2:
        return Estimate(float(known.mean()), float("nan"), 1)
    quantile = T_975[min(known.size - 1, len(T_975)) - 1]
    return Estimate(float(known.mean()), float(quantile * known.std(ddof=1) / np.sqrt(known.size)), int(known.size))


@dataclass(frozen=True)
class Standing:
    """A rule in the ranking.

    Attributes:
        rule: its name.
        ahead: of uniform at the same budget and on the same seeds, by preset, and `ALL` of them.
        level: the measure itself, likewise.
        complete: every cell of it finished.
    """

    rule: str
    ahead: dict[str, Estimate]
    level: dict[str, Estimate]
    complete: bool


def is_told(rule: str) -> bool:
    """Whether a rule is told the true success rates; in the laboratory, whatever its loss (``rule@loss``)."""
    return rule.partition("@")[0] in ORACLES


def rank(results: Results, measure: FloatArray | None = None) -> list[Standing]:
    """The rules, best first, by the mean over presets of how far they end ahead of uniform.

    A rule that did not finish everywhere comes last: its mean over presets is of other presets or seeds than the rest.

    Args:
        results: what to rank.
        measure: ``[R, P, S]``; by default what results are ranked by, when the budget is spent.
    """
    values = results.end(results.measure) if measure is None else measure
    ahead = values - values[results.rules.index(BASELINE)]
    standings = [
        Standing(rule, _by_preset(ahead[r], results.presets), _by_preset(values[r], results.presets),
                 not np.isnan(values[r]).any())
        for r, rule in enumerate(results.rules)
    ]  # fmt: skip
    return sorted(standings, key=_place)


def _place(standing: Standing) -> tuple[bool, float]:
    mean = standing.ahead[ALL].mean
    return not standing.complete, float("inf") if np.isnan(mean) else -mean


def _by_preset(values_PS: FloatArray, presets: Sequence[str]) -> dict[str, Estimate]:
    found = {preset: estimate(values) for preset, values in zip(presets, values_PS, strict=True)}
    # Over presets first: the presets are chosen, not drawn, so that only seeds are left to chance.
    return found | {ALL: estimate(values_PS.mean(axis=0))}


def ranking_table(standings: Sequence[Standing], presets: Sequence[str], title: str, width: int = 120) -> Group:
    """The ranking for a terminal, under its title; green and ▲: an interval lies above uniform, red and ▼: below.

    Where the terminal is too narrow for all intervals, the presets are shown without theirs: a figure is never cut.
    """
    names = (ALL, *presets)
    rule_room = min(max(len(standing.rule) for standing in standings), _NAME_ROOM)
    wide = rule_room + len(names) * (_CELL + 1) <= width
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rule", min_width=min(rule_room, 12))
    for name in names:  # of a trace's path, the end
        table.add_column(name if len(name) <= _CELL else f"…{name[1 - _CELL :]}", justify="right", no_wrap=True)
    for standing in standings:
        figures = standing.level if standing.rule == BASELINE else standing.ahead
        relative = standing.rule != BASELINE
        row = [_cell(figures[name], relative, interval=wide or name == ALL) for name in names]
        table.add_row(Text(standing.rule, overflow="fold"), *row)
    return Group(Text(title, style="italic"), table)  # a table's own title would be folded to the table's width


def _cell(figure: Estimate, relative: bool, interval: bool) -> Text:
    if np.isnan(figure.mean):
        return Text("-", style="dim")
    within = f" ±{figure.half:.4f}" if interval and not np.isnan(figure.half) else ""
    if not relative:
        return Text(f"{figure.mean:.4f}{within}  ", style="bold")
    mark, style = {1: ("▲", "green"), -1: ("▼", "red"), 0: (" ", "")}[figure.sign]
    return Text(f"{figure.mean:+.4f}{within} {mark}", style=style)
