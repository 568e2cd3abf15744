"""What there is to run, and when a finished cell is still the same cell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from knapsack_rl.compare import cells
from knapsack_rl.compare.cells import Arena, Cell, fingerprint

CELL = Cell("posterior", "hard", 3, Arena(64, 8, 4, 10))


def test_every_setting_makes_another_cell() -> None:
    others = [
        replace(CELL, rule="uniform"),
        replace(CELL, preset="easy"),
        replace(CELL, seed=4),
        *(
            replace(CELL, arena=replace(CELL.arena, **{name: value}))
            for name, value in {
                "prompts": 65,
                "groups": 7,
                "num_generations": 5,
                "steps": 11,
                "budget": "tokens",
                "min_count": 0,
                "max_count": 64,
            }.items()
        ),
    ]
    assert len({CELL.key, *(cell.key for cell in others)}) == len(others) + 1
    assert replace(CELL).key == CELL.key


def test_a_rule_of_ones_own_is_known_by_what_its_file_says(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("rule = 1")
    other.write_text("rule = 1")
    cell = replace(CELL, rule=f"{mine}:rule")
    before, ours = cell.key, CELL.key
    other.write_text("rule = 2")
    mine.write_text("rule = 1")
    assert cell.key == before
    mine.write_text("rule = 2")
    assert cell.key != before
    assert CELL.key == ours


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of our code that may be edited."""
    copy = tmp_path / "knapsack_rl"
    shutil.copytree(cells.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cells, "PACKAGE", copy)
    fingerprint.cache_clear()
    yield copy
    fingerprint.cache_clear()


def _edited(package: Path, file: str) -> bool:
    """Whether an edit of this file makes another cell."""
    fingerprint.cache_clear()
    before = CELL.key
    with (package / file).open("a") as text:
        text.write("\n# edited\n")
    fingerprint.cache_clear()
    return CELL.key != before


@pytest.mark.parametrize(
    "file", ["solver.py", "rivals/dapo.py", "simulator/learner.py", "compare/meter.py", "compare/cells.py", "new.py"]
)
def test_code_that_decides_the_numbers_makes_another_cell(package: Path, file: str) -> None:
    assert _edited(package, file)


@pytest.mark.parametrize(
    "file", ["compare/page.py", "compare/ranking.py", "compare/page.css", "report/svg.py", "cli.py", "testing/rules.py"]
)
def test_code_that_only_shows_does_not(package: Path, file: str) -> None:
    assert not _edited(package, file)


def test_all_that_a_cell_imports_is_in_its_key() -> None:
    code = "import sys, knapsack_rl.compare.cell; print(*[m.__file__ for n, m in sys.modules.items() if n.startswith("
    code += "'knapsack_rl')])"
    files = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    decide = {str(path) for path in cells._deciding_files()}
    assert {file for file in files if file not in decide} == {str(cells.PACKAGE / "compare" / "__init__.py")}


def test_what_is_left_out_of_the_key_is_there() -> None:
    assert all((cells.PACKAGE / name).exists() for name in cells._SHOWS_ONLY)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Arena(groups=0), "groups is 0"),
        (lambda: Arena(num_generations=1), "num_generations is 1"),
        (lambda: Arena(steps=0), "steps is 0"),
        (lambda: Arena(prompts=255), "255 prompts are fewer than the 256"),
        (lambda: Arena(num_generations=129), "num_generations is 129: a prompt gets 2 to 128"),
    ],
)
def test_numbers_that_make_no_sense(make: Callable[[], Arena], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_the_budget_and_what_a_rule_is_told() -> None:
    assert CELL.arena.rollouts == 10 * 8 * 4
    setting = CELL.setting()
    assert (setting.groups, setting.num_generations, setting.prompts, setting.seed) == (8, 4, 64, 3)
    assert setting.truth is None
    assert (setting.min_count, setting.max_count) == (2, 128)
