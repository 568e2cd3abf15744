"""The laboratory: ``python -m benchmarks.lab`` runs rules on language models and writes tables into docs/lab.md.

Without options a short comparison, which goes between the page's marks ``short``; with ``--full`` the one that counts,
which goes between the marks ``full`` and whose rows are kept in benchmarks/results/lab.parquet; with ``--rivals``
all published rules, between the marks ``rivals`` and in lab-rivals.parquet. The rest of the page is kept. Finished
cells are kept too, so that a run which was stopped goes on; a page to look around in lies beside them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.arena import ROOT, splice
from benchmarks.lab_tables import generated
from knapsack_rl.compare.match import play_match
from knapsack_rl.compare.page import write_comparison
from knapsack_rl.compare.results import write_results
from knapsack_rl.files import replacing
from knapsack_rl.lab.match import LabMatch
from knapsack_rl.lab.regimes import REGIMES
from knapsack_rl.lab.results import LabResults
from knapsack_rl.lab.tables import print_tables

RESULTS: Final = ROOT / "benchmarks" / "results"
# Seeds below are for tuning: what is reported was never looked at while a rule was made.
FIRST_SEED: Final = 10


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        mark: between which marks of the page the tables go.
        rules, regimes: names.
        seeds: how many.
        steps: of an equal division; by default what each regime says.
        kept: file of the rows, if they are committed.
    """

    mark: str
    rules: tuple[str, ...]
    regimes: tuple[str, ...] = tuple(REGIMES)
    seeds: int = 5
    steps: int | None = None
    kept: str | None = None

    @property
    def match(self) -> LabMatch:
        """The comparison."""
        return LabMatch(self.rules, self.regimes, tuple(range(FIRST_SEED, FIRST_SEED + self.seeds)), self.steps)


# `calibrated-pool@prompt` is the default of the TRL adapter.
BEST: Final = ("uniform", "knapsack-rl", "calibrated-pool@prompt", "oracle-pool")
SHORT: Final = Size("short", BEST, seeds=2, steps=100)
FULL: Final = Size("full", BEST, kept="lab.parquet")
# Every published rule of the arena, as its paper has it; the first also with the loss that ours uses.
PUBLISHED: Final = (
    "knapsack-rl", "knapsack-rl@prompt", "knapsack-rl-released", "coba-rl", "coba-rl-released", "vip-rloo",
    "vip-dr-grpo", "cero", "rollout-gdro", "gvm", "cures", "e3", "sgpo", "dapo", "greso", "mopps", "speed-rl",
    "pilot-commit", "reinforce-ada-balanced", "reinforce-ada-positive", "ar3po", "hora",
)  # fmt: skip
RIVALS: Final = Size(
    "rivals",
    ("uniform", "calibrated-pool@prompt", *PUBLISHED),
    regimes=("skills", "keys"),
    kept="lab-rivals.parquet",
)


def play(size: Size, out: Path, workers: int, console: Console) -> tuple[LabResults, int]:
    """Run what is not finished; the results, and how many cells failed."""
    match = size.match
    match.build_base_models(console.print)
    results, failures = play_match(match, out, workers, console)
    assert isinstance(results, LabResults)
    write_results(results, out / "results.parquet")
    write_comparison(results, match, failures, out / "report.html")
    return results, len(failures)


def write(results: LabResults, size: Size, page: Path) -> None:
    """The part of the page that belongs to this size."""
    text = splice(page.read_text(encoding="utf-8"), generated(results, size.match), *marks(size))
    with replacing(page) as file:
        file.write(text.encode())


def marks(size: Size) -> tuple[str, str]:
    """Where its tables begin and end."""
    return f"<!-- {size.mark} -->", f"<!-- /{size.mark} -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab", description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    help_full, help_rivals = "the comparison that counts: 40 minutes on two cores", "the published rules: as long"
    sizes.add_argument("--full", dest="size", action="store_const", const=FULL, default=SHORT, help=help_full)
    sizes.add_argument("--rivals", dest="size", action="store_const", const=RIVALS, help=help_rivals)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "lab", help="folder of the finished cells")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "lab.md", help="whose tables to write")
    options = parser.parse_args()
    size, console = options.size, Console()
    splice(
        options.page.read_text(encoding="utf-8"), "", *marks(size)
    )  # a page that cannot be written is better known now
    results, failed = play(size, options.out, options.workers, console)
    print_tables(results, console)
    write(results, size, options.page)
    if size.kept:
        write_results(results, RESULTS / size.kept)
    print(options.page)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
