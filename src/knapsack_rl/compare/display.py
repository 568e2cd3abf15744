"""What a person sees while cells run: a live table in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from knapsack_rl.compare.cells import Cell
from knapsack_rl.compare.workers import News

# Lines that a whole comparison writes into a log, failures aside.
LOG_LINES: Final = 20


class Display:
    """Shows how far the cells are: tell it the news; use it as a context."""

    def __init__(self, console: Console, cells: Sequence[Cell], finished: Collection[Cell]) -> None:
        self.console, self.cells = console, cells
        self.finished, self.failed = set(finished), set[Cell]()
        self.running: dict[Cell, float] = {}
        self.began, self.done_before = time.monotonic(), len(self.finished)
        self._total = Counter((cell.rule, cell.preset) for cell in cells)
        self._live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._table) if console.is_terminal else None
        )
        if finished:
            self.say(f"{len(finished)} of {len(cells)} cells were finished before and are kept")

    def __enter__(self) -> Display:
        """Begin to show."""
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def say(self, text: str) -> None:
        """Print a sentence as it is: no markup is read in it."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def take_in(self, news: News) -> None:
        """What a worker said."""
        if news.kind == "share":
            self.running[news.cell] = news.share
            return
        self.running.pop(news.cell, None)
        (self.finished if news.kind == "done" else self.failed).add(news.cell)
        if news.kind == "failed":
            self.say(f"failed: {news.cell.name}: {news.error}")
        done, every = len(self.finished) + len(self.failed), max(len(self.cells) // LOG_LINES, 1)
        if self._live is None and (done % every == 0 or done == len(self.cells)):
            self.say(f"{done} of {len(self.cells)} cells, {self._left()}")

    def _left(self) -> str:
        done = len(self.finished) + len(self.failed) - self.done_before + sum(self.running.values())
        seconds = time.monotonic() - self.began
        if not done:
            return "just begun"
        left = (len(self.cells) - self.done_before - done) / done * seconds
        return f"{seconds:.0f} s gone, about {left:.0f} s left"

    def _table(self) -> RenderableType:
        presets = list(dict.fromkeys(cell.preset for cell in self.cells))
        table = Table("rule", *presets, box=None, pad_edge=False, header_style="dim")
        for rule in dict.fromkeys(cell.rule for cell in self.cells):
            table.add_row(Text(rule), *(self._state(rule, preset) for preset in presets))
        done = len(self.finished) + len(self.failed)
        bar = ProgressBar(total=len(self.cells), completed=done + sum(self.running.values()), width=40)
        return Group(table, bar, Text(f" {done}/{len(self.cells)} cells, {self._left()}", style="dim"))

    def _state(self, rule: str, preset: str) -> Text:
        def here(cells: set[Cell] | dict[Cell, float]) -> int:
            return sum((cell.rule, cell.preset) == (rule, preset) for cell in cells)

        total, done, failed = self._total[rule, preset], here(self.finished), here(self.failed)
        if failed:
            return Text(f"{failed} failed", style="red")
        if done == total:
            return Text("done", style="green")
        return Text(f"{done}/{total}", style="bold" if here(self.running) else "dim")
