"""What a person sees while a comparison runs: a table that lives in a terminal, and few lines in a log."""

from __future__ import annotations

import io
import re

import pytest

pytest.importorskip("rich")
pytest.importorskip("polars")

from rich.console import Console

from knapsack_rl.compare.cells import Arena, Cell
from knapsack_rl.compare.display import LOG_LINES, Display
from knapsack_rl.compare.workers import News

ARENA = Arena(64, 8, 4, 10)


def _cells(seeds: int) -> list[Cell]:
    return [Cell(rule, preset, seed, ARENA) for seed in range(seeds) for preset in ("easy", "hard") for rule in "ab"]


def _shown(console: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def test_a_terminal_shows_every_rule_and_preset_a_bar_and_what_is_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=90)
    cells = _cells(seeds=2)
    with Display(console, cells, cells[:1]) as display:
        display.take_in(News(cells[1], "done", 1.0))
        display.take_in(News(cells[2], "share", 0.5))
        display.take_in(News(cells[3], "failed", error="ValueError: [red]no[/red]"))
    shown = _shown(console)
    assert "1 of 8 cells were finished before and are kept" in shown
    assert "failed: b on hard, seed 0: ValueError: [red]no[/red]" in shown
    last = shown[shown.rindex("rule") :].splitlines()
    assert [line.split() for line in last[:3]] == [
        ["rule", "easy", "hard"], ["a", "1/2", "0/2"], ["b", "1/2", "1", "failed"],
    ]  # fmt: skip
    assert re.fullmatch(r"[━╸╺]+ 3/8 cells, \d+ s gone, about \d+ s left", last[3].strip())


@pytest.mark.parametrize("seeds", [1, 100])
def test_a_log_gets_a_line_now_and_then(seeds: int) -> None:
    console = Console(file=io.StringIO(), width=90)
    cells = _cells(seeds)
    with Display(console, cells, ()) as display:
        for cell in cells:
            display.take_in(News(cell, "share", 0.3))
            display.take_in(News(cell, "done", 1.0))
    lines = _shown(console).splitlines()
    assert len(lines) == min(len(cells), LOG_LINES)
    assert lines[-1].startswith(f"{len(cells)} of {len(cells)} cells, ")
