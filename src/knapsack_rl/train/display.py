"""What a person sees while the arms train: a live table in a terminal, a line now and then in a log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from knapsack_rl.train.progress import WINDOW, ArmProgress, duration

COLUMNS: Final = (
    "arm", "step", "", "reward", "held-out", "prompts mixed", "rollouts mixed", "largest group", "rollouts", "left"
)  # fmt: skip
# Lines that a whole run writes into a log, per arm.
LOG_LINES: Final = 10


class Display:
    """Shows the progress of arms: call ``update`` whenever traces may have grown; use it as a context.

    Args:
        console: where to; what it is (a terminal or not) decides the form.
        arms: what to show.
    """

    def __init__(self, console: Console, arms: Sequence[ArmProgress]) -> None:
        self.console, self.arms = console, arms
        self.note = ""
        self._logged = {arm.name: -1 for arm in arms}
        self._live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._table) if console.is_terminal else None
        )

    def __enter__(self) -> Display:
        """Begin to show."""
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def say(self, note: str) -> None:
        """A word on what is going on: under the table, or as a line of the log."""
        self.note = note
        if self._live is None:
            say(self.console, note)

    def update(self) -> None:
        """Take in what the traces say now."""
        for arm in self.arms:
            if arm.poll() and self._live is None:
                self._log(arm)

    def _log(self, arm: ArmProgress) -> None:
        if not arm.done:
            return
        every = max(1, arm.total // LOG_LINES)
        if arm.done // every > self._logged[arm.name] // every or (arm.ended and arm.done > self._logged[arm.name]):
            self._logged[arm.name] = arm.done
            cells = [f"{name} {cell}" for name, cell in zip(COLUMNS[3:], _figures(arm), strict=True) if cell != "-"]
            say(self.console, f"{arm.name:9} step {_steps(arm)}: {', '.join(cells)}")

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("arm", "") else "right")
        for arm in self.arms:
            bar = ProgressBar(total=max(arm.total, 1), completed=arm.done, width=16)
            figures = _figures(arm)
            table.add_row(arm.name, _steps(arm), bar, *figures)
        note = Text(self.note or f"reward and shares: mean of the last {WINDOW} steps", style="dim")
        return Group(table, note)


def _steps(arm: ArmProgress) -> str:
    return f"{arm.done}/{arm.total}" if arm.total else str(arm.done)


def _figures(arm: ArmProgress) -> list[str]:
    return [
        number(arm.reward),
        number(arm.heldout),
        percent(arm.prompts_mixed),
        percent(arm.rollouts_mixed),
        str(arm.largest) if arm.largest else "-",
        f"{arm.rollouts:,}",
        arm.ended or duration(arm.seconds_left),
    ]


def say(console: Console, text: str) -> None:
    """Print a sentence as it is: no markup is read in it, nothing is coloured, no line is broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def number(value: float) -> str:
    """Three decimals, or a dash for what is not known."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def percent(share: float) -> str:
    """A share as whole per cent, or a dash for what is not known."""
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"
