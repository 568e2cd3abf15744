"""The laboratory's tables: measures of each rule on each regime, and paired differences from uniform."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from knapsack_arena.compare.ranking import Estimate, estimate
from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import BASELINE
from knapsack_rl.notation import FloatArray


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        title: its heading.
        values: of a comparison, ``[R, P, S]``.
        better: 1 where more is better, -1 where less is better.
    """

    title: str
    values: Callable[[Results], FloatArray]
    better: int = 1


def rollouts_to_uniform(results: Results) -> FloatArray:
    """`Results.share_to_uniform`, and 1 (a lower bound) where a finished run never reached it; ``[R, P, S]``."""
    finished = ~np.isnan(results.end(results.scoring.measure))
    share = results.share_to_uniform
    found: FloatArray = np.where(finished & np.isnan(share), 1.0, share)
    return found


COLUMNS: Final = (
    Column("area", lambda results: results.area),
    Column("end", lambda results: results.end("held_out_p")),
    Column("to uniform's end", rollouts_to_uniform, -1),
    Column("harder half", lambda results: results.end("hard_half_p")),
    Column("ever solved", lambda results: results.end("coverage")),
    Column("value share", lambda results: results.mean_over_run("value_share")),
    Column("squared error", lambda results: results.mean_over_run("candidate_error"), -1),
)


EVERYWHERE = "all regimes"
# Characters of "0.123 +0.123±0.012 ▲"; of the longest word of a heading, so that 80 columns hold them all; and at most
# of a rule's name before it is folded.
WIDE, NARROW, NAME_ROOM = 20, 9, 28


@dataclass(frozen=True)
class Figure:
    """A rule's value of one measure.

    Attributes:
        level: mean over seeds.
        ahead: the difference from uniform on the same seeds; None of uniform itself.
        better: 1 where the interval lies on the better side of uniform, -1 on the worse side, else 0.
    """

    level: float
    ahead: Estimate | None
    better: int


def lead_share(results: Results, rule: str, regime: str) -> Estimate | None:
    """A rule's share of the oracle's lead over uniform, by area under the curve; None without the oracle.

    A ratio of means over seeds; its interval is that of the residuals, divided by the oracle's mean lead (the delta
    method).
    """
    if results.scoring.oracle not in results.rules:
        return None
    area = results.area[:, results.presets.index(regime)]
    uniform = area[results.rules.index(BASELINE)]
    lead = area[results.rules.index(rule)] - uniform
    most = area[results.rules.index(results.scoring.oracle)] - uniform
    known = ~np.isnan(lead + most)
    if not known.any() or most[known].mean() == 0:
        return Estimate(float("nan"), float("nan"), 0)
    ratio = lead[known].mean() / most[known].mean()
    return estimate(ratio + (lead[known] - ratio * most[known]) / most[known].mean())


def figures(results: Results, regime: str) -> Iterator[tuple[str, list[Figure]]]:
    """Each rule with its figures in the order of `COLUMNS`; best area first."""
    p, uniform = results.presets.index(regime), results.rules.index(BASELINE)
    area = results.area[:, p].mean(axis=1)
    tables = [column.values(results)[:, p] for column in COLUMNS]
    for r in np.argsort(-area, kind="stable").tolist():
        row = []
        for column, table in zip(COLUMNS, tables, strict=True):
            ahead = None if r == uniform else estimate(table[r] - table[uniform])
            row.append(Figure(estimate(table[r]).mean, ahead, 0 if ahead is None else column.better * ahead.sign))
        yield results.rules[r], row


def leads(results: Results) -> Iterator[tuple[str, list[Estimate | None]]]:
    """Each rule with its share of the oracle's lead on each regime, and the mean of these, without an interval."""
    for rule in results.rules:
        if rule == BASELINE:
            continue
        shares = [lead_share(results, rule, regime) for regime in results.presets]
        means = [share.mean for share in shares if share is not None]
        yield rule, [*shares, Estimate(float(np.mean(means)), float("nan"), 0) if means else None]


def print_tables(results: Results, console: Console) -> None:
    """Print a table for each regime, and one of shares of the oracle's lead."""
    room = min(max(map(len, results.rules)), NAME_ROOM)
    wide = console.width >= room + len(COLUMNS) * (WIDE + 1)
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    for regime in results.presets:
        table = _table(room, f"{regime}: level, and the 95 % interval of the difference from uniform over {seeds}")
        for column in COLUMNS:
            table.add_column(column.title, justify="right", width=WIDE if wide else NARROW)
        for rule, row in figures(results, regime):
            table.add_row(Text(rule, overflow="fold"), *(_cell(figure, wide) for figure in row))
        console.print(table)
    if results.scoring.oracle in results.rules:
        table = _table(
            room, f"Share of the lead of {results.scoring.oracle} over uniform, by area, with its 95 % interval"
        )
        for name in (*results.presets, EVERYWHERE):
            table.add_column(Text(name, overflow="fold"), justify="right", min_width=11)
        for rule, shares in leads(results):
            table.add_row(Text(rule, overflow="fold"), *(_share(share) for share in shares))
        console.print(table)


def _table(room: int, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rule", min_width=min(room, 10))
    return table


def _cell(figure: Figure, interval: bool) -> Text:
    if np.isnan(figure.level):
        return Text("-", style="dim")
    if figure.ahead is None:
        return Text(f"{figure.level:.3f}" + ("  " if interval else " "), style="bold")
    mark, style = {1: ("▲", "green"), -1: ("▼", "red"), 0: (" ", "")}[figure.better]
    if not interval:
        return Text(f"{figure.level:.3f}{mark}", style=style)
    known = not np.isnan(figure.ahead.half)
    within = f" {figure.ahead.mean:+.3f}±{figure.ahead.half:.3f}" if known else ""
    return Text(f"{figure.level:.3f}{within} {mark}", style=style)


def _share(share: Estimate | None) -> Text:
    if share is None or np.isnan(share.mean):
        return Text("-", style="dim")
    return Text(f"{share.mean:.2f}" + ("" if np.isnan(share.half) else f" ±{share.half:.2f}"))
