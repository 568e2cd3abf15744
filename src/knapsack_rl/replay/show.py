"""What a person sees: three small tables, and why a rule that did not finish did not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from knapsack_rl.metrics import STATUSES
from knapsack_rl.replay.tally import Tally
from knapsack_rl.report.runs import drawable

_RATES = ("0", "to 0.2", "to 0.8", "to 1", "1")


@dataclass(frozen=True)
class Line:
    """A rule's line in every table."""

    name: str
    tally: Tally
    out: str | None = None


def show(console: Console, title: str, lines: Sequence[Line], notes: Sequence[str]) -> None:
    """Print the outcome of a replay; names come from files and are shown as they are, never read as markup."""
    _say(console, title)
    means = [line.tally.means() for line in lines]
    _print(console, "bought, per step", lines, means, _bought(means))
    _print(console, "foreseen, per step", lines, means, _foreseen(means))
    statuses = [line.tally.counts_by_status() for line in lines]
    columns: dict[str, Callable[[Mapping[str, float]], str]] = {
        f"p = {rates}" if rates in "01" else f"p {rates}": _reader(status, 1)
        for status, rates in zip(STATUSES, _RATES, strict=True)
    }
    _print(console, "rollouts of a prompt, by its recorded pass rate p", lines, statuses, columns)
    for note in [*notes, *(f"{drawable(line.name)} {line.out}." for line in lines if line.out)]:
        _say(console, note)


def _bought(means: Sequence[Mapping[str, float]]) -> dict[str, Callable[[Mapping[str, float]], str]]:
    columns = {
        "rollouts": _reader("rollouts", 0),
        "short": _percent("frac_short"),
        "rounds": _reader("rounds", 1),
        "largest": _reader("largest", 0),
        "value": _reader("value_expected", 3),
        "value seen": _reader("value_realised", 3),
        "mixed": _reader("mixed_prompts_expected", 1),
        "mixed seen": _reader("mixed_prompts_realised", 1),
        "in mixed": _percent("frac_rollouts_mixed"),
        "dead": _reader("dead_rollouts", 0),
    }
    if any(mean and mean["trained"] < mean["rollouts"] - mean["short"] for mean in means):
        columns["trained"] = _reader("trained", 0)
    return columns | _where_known(means, "tokens", "tokens", _reader("tokens", 0))


def _foreseen(means: Sequence[Mapping[str, float]]) -> dict[str, Callable[[Mapping[str, float]], str]]:
    columns = {
        "value believed": _reader("value_believed", 3),
        "value": _reader("value_expected", 3),
        "mixed believed": _reader("mixed_prompts_believed", 1),
        "mixed": _reader("mixed_prompts_expected", 1),
        "Brier, mixed": _reader("brier_mixed", 3),
        "Brier, success": _reader("brier_success", 3),
    }
    columns |= _where_known(means, "overlap", "as recorded", _percent("overlap"))
    return columns | _where_known(means, "same_plan", "same plans", _percent("same_plan"))


def _where_known(
    means: Sequence[Mapping[str, float]], figure: str, column: str, reader: Callable[[Mapping[str, float]], str]
) -> dict[str, Callable[[Mapping[str, float]], str]]:
    """The column, unless nobody has that figure."""
    return {column: reader} if any(not math.isnan(mean.get(figure, math.nan)) for mean in means) else {}


def _print(
    console: Console,
    title: str,
    lines: Sequence[Line],
    figures: Sequence[Mapping[str, float]],
    columns: Mapping[str, Callable[[Mapping[str, float]], str]],
) -> None:
    # Without a terminal there are no rules and no colours: columns that a script can cut.
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, header_style="bold", pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column("steps", justify="right")
    for column in columns:
        table.add_column(column, justify="right")
    for line, figure in zip(lines, figures, strict=True):
        table.add_row(Text(drawable(line.name)), f"{line.tally.steps:,}", *(read(figure) for read in columns.values()))
    console.print()
    console.print(table)


def _reader(figure: str, digits: int) -> Callable[[Mapping[str, float]], str]:
    def read(figures: Mapping[str, float]) -> str:
        value = figures.get(figure, math.nan)
        return "-" if math.isnan(value) else f"{value:,.{digits}f}"

    return read


def _percent(figure: str) -> Callable[[Mapping[str, float]], str]:
    def read(figures: Mapping[str, float]) -> str:
        value = figures.get(figure, math.nan)
        return "-" if math.isnan(value) else f"{100 * value:.1f} %"

    return read


def _say(console: Console, text: str) -> None:
    console.print(Text("".join(letter if letter.isprintable() else "?" for letter in text)), soft_wrap=True)
