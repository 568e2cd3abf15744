"""Output of a replay: three tables and notes on the terminal; the summary and every step as JSON or Parquet."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from knapsack_arena.replay.metrics import MetricAverager, StepMetrics
from knapsack_arena.replay.source import ReplaySource
from knapsack_rl.console.text import printable
from knapsack_rl.files import plain_json, replacing
from knapsack_rl.metrics import STATUSES

# Heading of a column -> name of its metric and format of its values.
_Columns = dict[str, tuple[str, str]]

# Requested and drawn rollouts. A column of a metric that no rule has is left out.
_REQUESTED: _Columns = {
    "rollouts": ("rollouts", ",.0f"),
    "short": ("frac_short", ".1%"),
    "rounds": ("rounds", ".1f"),
    "largest": ("largest", ",.0f"),
    "value": ("value_expected", ",.3f"),
    "value drawn": ("value_realised", ",.3f"),
    "mixed": ("mixed_prompts_expected", ",.1f"),
    "mixed drawn": ("mixed_prompts_realised", ",.1f"),
    "in mixed": ("frac_rollouts_mixed", ".1%"),
    "zero-gradient": ("zero_gradient_rollouts", ",.0f"),
    "trained": ("trained", ",.0f"),
    "tokens": ("tokens", ",.0f"),
}
_FORECAST: _Columns = {
    "value believed": ("value_believed", ",.3f"),
    "value": ("value_expected", ",.3f"),
    "mixed believed": ("mixed_prompts_believed", ",.1f"),
    "mixed": ("mixed_prompts_expected", ",.1f"),
    "Brier, mixed": ("brier_mixed", ".3f"),
    "Brier, success": ("brier_success", ".3f"),
    "as recorded": ("overlap", ".1%"),
    "same plans": ("same_plan", ".1%"),
}
_OPTIONAL = ("tokens", "overlap", "same_plan")
_BY_RATE: _Columns = {
    heading: (level, ",.1f")
    for heading, level in zip(("p = 0", "p to 0.2", "p to 0.8", "p to 1", "p = 1"), STATUSES, strict=True)
}


@dataclass(frozen=True, eq=False)
class RuleSummary:
    """The results of one rule.

    Attributes:
        name: the rule.
        averages: its metrics over the steps it was replayed for.
        stopped_reason: why its replay ended early, if it did.
    """

    name: str
    averages: MetricAverager
    stopped_reason: str | None = None


class StepTable:
    """The metrics of every rule and step, by column: 8 bytes a number."""

    def __init__(self) -> None:
        """A table without rows."""
        self._rules: list[str] = []
        self._steps = array("q")
        self._columns: dict[str, array[float]] = {}

    def add(self, rule: str, step: int, metrics: StepMetrics) -> None:
        """Append a row."""
        self._rules.append(rule)
        self._steps.append(step)
        for name, value in metrics.values.items():
            self._columns.setdefault(name, array("d")).append(value)

    def write_json(self, path: Path, summary: Mapping[str, Any]) -> None:
        """Write the summary and, as ``steps``, all rows: one JSON document, all or nothing; NaN is null."""
        with replacing(path) as file:
            file.write(_json(summary).removesuffix(b"}") + b', "steps": [')
            for number, row in enumerate(self._rows()):
                file.write((b",\n" if number else b"\n") + _json(row))
            file.write(b"\n]}\n")

    def write_parquet(self, path: Path) -> None:
        """Write all rows as Parquet, all or nothing; NaN is null."""
        import polars as pl

        columns = {name: np.asarray(values) for name, values in self._columns.items()}
        frame = pl.DataFrame({"rule": self._rules, "step": np.asarray(self._steps), **columns})
        with replacing(path) as file:
            frame.fill_nan(None).write_parquet(file)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for i, rule in enumerate(self._rules):
            yield {"rule": rule, "step": self._steps[i], **{name: values[i] for name, values in self._columns.items()}}


def summary_fields(source: ReplaySource, path: Path, rules: Sequence[RuleSummary]) -> dict[str, Any]:
    """The summary as it is written to JSON."""
    context = {field.name: getattr(source.context, field.name) for field in fields(source.context)}
    return {
        "source": str(path),
        "context": {name: value for name, value in context.items() if name not in ("truth", "features")},
        "rules": [
            {
                "rule": rule.name,
                "steps": rule.averages.steps,
                "stopped_reason": rule.stopped_reason,
                "means": rule.averages.means(),
                "counts_by_status": rule.averages.counts_by_status(),
                "calibration": rule.averages.calibration(),
            }
            for rule in rules
        ],
        "notes": list(source.notes),
    }


def print_results(console: Console, source: ReplaySource, rules: Sequence[RuleSummary]) -> None:
    """Print the results of a replay; text from files is shown without control characters, never read as markup."""
    _print_line(console, source.title)
    means = [rule.averages.means() for rule in rules]
    fewer = any(mean and mean["trained"] < mean["rollouts"] - mean["short"] for mean in means)
    requested = {heading: column for heading, column in _REQUESTED.items() if heading != "trained" or fewer}
    _print_table(console, "requested and drawn, per step", rules, means, requested)
    _print_table(console, "forecast, per step", rules, means, _FORECAST)
    by_rate = [rule.averages.counts_by_status() for rule in rules]
    _print_table(console, "rollouts of a prompt, by its recorded pass rate p", rules, by_rate, _BY_RATE)
    for note in [*source.notes, *_notes([mean for mean in means if mean])]:
        _print_line(console, note)
    for rule in rules:
        if rule.stopped_reason is not None:
            _print_line(console, f"{rule.name} {rule.stopped_reason}.")


def _notes(means: Sequence[Mapping[str, float]]) -> list[str]:
    notes = ["value, mixed: means over all possible draws. drawn: of the one seeded draw (docs/replay.md)."]
    if any(mean["frac_short"] > 0 for mean in means):
        notes.append(
            "short: share of the requested rollouts that the record does not hold; they are missing from the outcomes."
            " A high share biases the comparison towards the rule that produced the record."
        )
    spent = [mean["rollouts"] for mean in means]
    if max(spent) > 1.01 * min(spent):
        notes.append("The rules requested different numbers of rollouts: compare their results per rollout.")
    if any(mean["rounds"] > 1 for mean in means):
        notes.append("'-': expected values are undefined for multi-round rules.")
    return notes


def _print_table(
    console: Console,
    title: str,
    rules: Sequence[RuleSummary],
    metrics: Sequence[Mapping[str, float]],
    columns: _Columns,
) -> None:
    # Plain columns without rules and colours where the output is not a terminal, for scripts.
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, header_style="bold", pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column("steps", justify="right")
    kept = []
    for heading, (name, form) in columns.items():
        if name not in _OPTIONAL or any(not math.isnan(of_rule.get(name, math.nan)) for of_rule in metrics):
            table.add_column(heading, justify="right")
            kept.append((name, form))
    for rule, of_rule in zip(rules, metrics, strict=True):
        values = [(of_rule.get(name, math.nan), form) for name, form in kept]
        cells = ["-" if math.isnan(value) else format(value, form) for value, form in values]
        table.add_row(Text(printable(rule.name)), f"{rule.averages.steps:,}", *cells)
    console.print()
    console.print(table)


def _print_line(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(plain_json(value), allow_nan=False).encode("ascii")
