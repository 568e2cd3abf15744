"""Build the page: measures, figures and tables of the runs in one template."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from markupsafe import Markup

from knapsack_rl.metrics import STATUSES
from knapsack_rl.report import charts, svg, tables
from knapsack_rl.report.html import fill
from knapsack_rl.report.runs import INKS, Run, make_runs
from knapsack_rl.report.verdict import verdict
from knapsack_rl.trace import Trace

Chart: TypeAlias = Callable[[Sequence[Run]], list[str]]

CHARTS: dict[str, Chart] = {
    "learning": charts.learning_curves,
    "mixed": charts.mixed_shares,
    "counts": charts.count_maps,
    "allocation": charts.allocation_by_rate,
    "calibration": charts.calibration,
}
# The line styles of Matplotlib, as lengths of strokes and gaps.
_STROKES = {"-": "none", "--": "6 3", ":": "2 2", "-.": "8 3 2 3"}


def render(traces: Sequence[Trace], refresh: int | None = None) -> str:
    """The page as text, with all text from the traces escaped: the same traces give the same page.

    Args:
        traces: records of the runs.
        refresh: seconds after which a browser loads the page again; such a page says when it was written.
    """
    runs = make_runs(traces)
    with_steps = [run for run in runs if run.steps]
    differ, same = tables.settings(runs)
    return fill(
        Path(__file__).with_name("page.html.j2"),
        runs=runs,
        refresh=refresh,
        written=time.strftime("%H:%M:%S"),
        strokes=_STROKES,
        inks=INKS,
        with_steps=with_steps,
        verdict=" ".join(verdict(runs)),
        notes=_notes(runs),
        headline=tables.headline(runs),
        figures=_figures(with_steps),
        statuses=STATUSES,
        transitions=tables.transitions(with_steps),
        samples=tables.samples(with_steps),
        settings_differ=differ,
        settings_same=same,
    )


def _figures(runs: Sequence[Run]) -> dict[str, list[Markup]]:
    """The charts by name; empty without a step."""
    with svg.style():
        return {name: [Markup(drawing) for drawing in draw(runs)] if runs else [] for name, draw in CHARTS.items()}


def _notes(runs: Sequence[Run]) -> list[str]:
    """Limitations of the data that the page shows."""
    notes = []
    for run in runs:
        if not run.trace.run:
            notes.append(f"{run.trace.path} holds no record yet.")
        elif not run.steps:
            notes.append(f"{run.label}: no generation step has been recorded yet.")
        elif len(run.steps) == 1:
            notes.append(f"{run.label}: a single step has been recorded; changes cannot be shown.")
        if run.steps and run.trace.ended is None:
            notes.append(f"{run.label}: the trace has no end record: the run was killed or is still running.")
        elif run.trace.ended not in (None, "finished"):
            notes.append(f"{run.label}: the run was {run.trace.ended} after {len(run.steps):,} generation steps.")
    spent = {run.rollouts for run in runs if run.steps}
    if len(spent) > 1:
        notes.append("The runs spent different numbers of rollouts: compare curves at equal rollouts, not end points.")
    return notes
