"""Build the page: measures, figures and tables of the runs in one template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from markupsafe import Markup

from knapsack_rl.metrics import STATUSES
from knapsack_rl.report import charts, svg, tables
from knapsack_rl.report.html import fill
from knapsack_rl.report.runs import Run, make_runs
from knapsack_rl.report.verdict import verdict
from knapsack_rl.trace import Trace

Chart: TypeAlias = Callable[[Sequence[Run]], str]

# Panels in a row; figures with one panel per run take several rows.
_PANELS = 3


def render(traces: Sequence[Trace]) -> str:
    """The page as text: deterministic, with all text from the traces escaped."""
    runs = make_runs(traces)
    with_steps = [run for run in runs if run.steps]
    differ, same = tables.settings(runs)
    return fill(
        Path(__file__).with_name("page.html.j2"),
        runs=runs,
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
    """The figures by name, each as one or more rows of panels; empty without a step."""
    if not runs:
        return {}
    rows = [runs[start : start + _PANELS] for start in range(0, len(runs), _PANELS)]
    together: dict[str, Chart] = {"learning": charts.learning_curves, "mixed": charts.mixed_shares}
    apart: dict[str, Chart] = {
        "counts": charts.count_maps,
        "allocation": charts.allocation_by_rate,
        "calibration": charts.calibration,
    }
    with svg.style():
        figures = {name: [Markup(draw(runs))] for name, draw in together.items()}
        return figures | {name: [Markup(draw(row)) for row in rows] for name, draw in apart.items()}


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
