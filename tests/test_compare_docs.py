"""The page about `compare` names every rule, every column and every metric."""

from __future__ import annotations

import re
from pathlib import Path

from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.results import gather
from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings, run_trial
from knapsack_arena.registry import REGISTRY

PAGE = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")


def _named(heads: str) -> set[str]:
    """The names in the first column of the table with these headings."""
    table = PAGE[PAGE.index(f"\n| {heads} ") + 1 :].partition("\n\n")[0]
    return {name for line in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", line.split(" | ")[0])}


def test_every_rule_is_in_the_table() -> None:
    assert _named("name | from") == set(REGISTRY)


def test_every_column_and_every_metric_is_in_the_tables(tmp_path: Path) -> None:
    assert _named("column | meaning") == set(SCHEMA)
    files = []
    for rule in ("uniform", "oracle"):
        files.append(tmp_path / f"{rule}.parquet")
        run_trial(Trial(SIMULATOR, rule, "hard", 0, TrialSettings(64, 8, 4, 10))).write_parquet(files[-1])
    found = gather(files, ("uniform", "oracle"), ("hard",), (0,)).frame
    assert _named("`metric` | meaning") == set(found["metric"].unique())
