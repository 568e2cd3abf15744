"""Keys of trials: which changes make a stored result stale."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from knapsack_arena.compare import trials
from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings, fingerprint

TRIAL = Trial(SIMULATOR, "beta", "hard", 3, TrialSettings(64, 8, 4, 10))
# Prints the files that a module loads, the initialisation of the two packages aside, which import for convenience.
CLOSURE = """
import importlib.util, sys, types
for name in ("knapsack_rl", "knapsack_arena"):
    package = types.ModuleType(name)
    package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = package
import {module}
print(*[m.__file__ for n, m in sys.modules.items() if n.startswith("knapsack_") and hasattr(m, "__file__")])
"""


def test_every_setting_makes_another_key() -> None:
    others = [
        replace(TRIAL, rule="uniform"),
        replace(TRIAL, preset="easy"),
        replace(TRIAL, seed=4),
        replace(TRIAL, testbed=replace(SIMULATOR, name="other")),
        replace(TRIAL, testbed=replace(SIMULATOR, code=("knapsack_arena/replay",))),
        *(
            replace(TRIAL, settings=replace(TRIAL.settings, **{name: value}))
            for name, value in {
                "prompts": 65,
                "groups": 7,
                "average": 5,
                "steps": 11,
                "budget": "tokens",
                "min_count": 0,
                "max_count": 64,
            }.items()
        ),
    ]
    assert len({TRIAL.key, *(trial.key for trial in others)}) == len(others) + 1
    assert replace(TRIAL).key == TRIAL.key


def test_a_rule_file_is_known_by_its_contents(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("rule = 1")
    other.write_text("rule = 1")
    trial = replace(TRIAL, rule=f"{mine}:rule")
    before, ours = trial.key, TRIAL.key
    other.write_text("rule = 2")
    mine.write_text("rule = 1")
    assert trial.key == before
    mine.write_text("rule = 2")
    assert trial.key != before
    assert TRIAL.key == ours


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of both packages that may be edited."""
    copy = tmp_path / "src"
    for package in ("knapsack_rl", "knapsack_arena"):
        shutil.copytree(trials.SOURCES / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(trials, "SOURCES", copy)
    fingerprint.cache_clear()
    yield copy
    fingerprint.cache_clear()


def _edited(sources: Path, file: str) -> bool:
    """Whether an edit of this file changes the key."""
    fingerprint.cache_clear()
    before = TRIAL.key
    with (sources / file).open("a") as text:
        text.write("\n# edited\n")
    fingerprint.cache_clear()
    return TRIAL.key != before


@pytest.mark.parametrize(
    "file",
    [
        "knapsack_rl/knapsack/solver.py",
        "knapsack_rl/beliefs/new.py",
        "knapsack_rl/advantages.py",
        "knapsack_arena/published/dapo.py",
        "knapsack_arena/simulator/learner.py",
        "knapsack_arena/compare/metrics.py",
        "knapsack_arena/compare/trials.py",
    ],
)
def test_code_that_decides_the_numbers_changes_the_key(sources: Path, file: str) -> None:
    assert _edited(sources, file)


@pytest.mark.parametrize(
    "file",
    [
        "knapsack_arena/compare/page.py",
        "knapsack_arena/compare/experiment.py",
        "knapsack_arena/compare/page.css",
        "knapsack_arena/lab/metrics.py",
        "knapsack_arena/replay/run.py",
        "knapsack_arena/testing/new.py",
        "knapsack_rl/report/svg.py",
        "knapsack_rl/session.py",
        "knapsack_rl/trl/config.py",
        "knapsack_rl/verl/new.py",
        "knapsack_rl/__main__.py",
        "knapsack_rl/__init__.py",
    ],
)
def test_other_code_does_not(sources: Path, file: str) -> None:
    assert not _edited(sources, file)


def _loaded(module: str) -> set[str]:
    code = CLOSURE.format(module=module)
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_key_covers_what_a_trial_imports_and_nothing_else() -> None:
    decide = {str(path) for path in trials.deciding_files()}
    assert _loaded("knapsack_arena.compare.trials") ^ decide == {
        str(trials.SOURCES / "knapsack_arena" / "compare" / "__init__.py"),
        # Only a session's, or a user's own; the folder decides.
        str(trials.SOURCES / "knapsack_rl" / "beliefs" / "reward_check.py"),
        str(trials.SOURCES / "knapsack_rl" / "beliefs" / "staged.py"),
    }
    assert all((trials.SOURCES / name).exists() for name in trials.DECIDING)


def test_the_key_covers_what_a_trial_of_the_laboratory_imports() -> None:
    pytest.importorskip("torch")
    from knapsack_arena.lab.trials import LANGUAGE_MODELS

    decide = {str(path) for path in trials.deciding_files(LANGUAGE_MODELS.code)}
    arena = trials.SOURCES / "knapsack_arena"
    initialisers = {str(arena / folder / "__init__.py") for folder in ("compare", "lab")}
    assert _loaded("knapsack_arena.lab.trials") - decide == initialisers
    assert all((trials.SOURCES / name).exists() for name in LANGUAGE_MODELS.code)
    # An edit of the laboratory leaves trials on the simulator alone.
    own = {path for path in decide if "/lab/" in path or "/tasks/" in path}
    assert len(own) > 5
    assert not own & {str(path) for path in trials.deciding_files()}


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: TrialSettings(groups=0), "groups is 0"),
        (lambda: TrialSettings(average=1), "average is 1"),
        (lambda: TrialSettings(steps=0), "steps is 0"),
        (lambda: TrialSettings(prompts=255), "255 prompts are fewer than the 256"),
        (lambda: TrialSettings(average=129), "average is 129: a prompt gets 2 to 128"),
    ],
)
def test_values_out_of_range(make: Callable[[], TrialSettings], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        make()


def test_the_budget_and_what_a_rule_is_given() -> None:
    assert TRIAL.settings.rollouts == 10 * 8 * 4
    context = TRIAL.context()
    assert (context.groups, context.average, context.prompts, context.seed) == (8, 4, 64, 3)
    assert context.truth is None
    assert (context.min_count, context.max_count) == (2, 128)
