"""The laboratory: ``python -m benchmarks.lab`` runs rules on language models and writes tables into docs/lab.md.

Without options a short comparison, between the page's marks ``short``; with ``--full`` the full one, between the marks
``full``, with rows in benchmarks/results/lab.parquet; with ``--published`` all published rules, between the marks
``published``, with rows in lab-published.parquet. The rest of the page is kept. Finished trials are kept too, so that a
stopped run continues, and an interactive page is written beside them.
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
from knapsack_arena.compare.experiment import Experiment, run_experiment
from knapsack_arena.compare.page import write_comparison
from knapsack_arena.compare.results import Results, write_results
from knapsack_arena.compare.workers import make_backend
from knapsack_arena.lab.experiment import build_base_models, lab_experiment
from knapsack_arena.lab.tables import print_tables
from knapsack_rl.files import replacing

RESULTS: Final = ROOT / "benchmarks" / "results"
# Seeds below are for tuning; reported seeds were not used while rules were developed.
FIRST_SEED: Final = 10

# Regimes whose success rates are exact; those with long answers have a campaign of their own.
EXACT: Final = ("skills", "keys", "tail")


@dataclass(frozen=True)
class Size:
    """Size of a run.

    Attributes:
        mark: name of the page's marks between which the tables are written.
        rules, regimes: names.
        runs: seeds, from `FIRST_SEED`.
        steps: steps under equal division; by default those of each regime.
        kept: file of the rows, if they are committed.
    """

    mark: str
    rules: tuple[str, ...]
    regimes: tuple[str, ...] = EXACT
    runs: int = 5
    steps: int | None = None
    kept: str | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(FIRST_SEED, FIRST_SEED + self.runs))

    @property
    def experiment(self) -> Experiment:
        """The comparison."""
        return lab_experiment(self.rules, self.regimes, self.seeds, self.steps)


# `calibrated-pool@prompt` is the default of the TRL adapter.
BEST: Final = ("uniform", "paper", "calibrated-pool@prompt", "oracle-pool")
SHORT: Final = Size("short", BEST, runs=2, steps=100)
FULL: Final = Size("full", BEST, kept="lab.parquet")
# Every published rule, with its paper's loss; the first also with the loss of our rule.
PUBLISHED_RULES: Final = (
    "paper", "paper@prompt", "paper-released", "coba-rl", "coba-rl-released", "vip-rloo",
    "vip-dr-grpo", "cero", "rollout-gdro", "gvm", "cures", "e3", "sgpo", "dapo", "greso", "mopps", "speed-rl",
    "pilot-commit", "reinforce-ada-balanced", "reinforce-ada-positive", "ar3po", "hora",
)  # fmt: skip
PUBLISHED: Final = Size(
    "published",
    ("uniform", "calibrated-pool@prompt", *PUBLISHED_RULES),
    regimes=("skills", "keys"),
    kept="lab-published.parquet",
)


def run(size: Size, out: Path, workers: int, console: Console) -> tuple[Results, int]:
    """Run the trials that are not finished.

    Returns:
        The results, and the number of failed trials.
    """
    experiment = size.experiment
    build_base_models(experiment, console.print)
    results, failures = run_experiment(experiment, out, make_backend(workers), console)
    write_results(results, out / "results.parquet")
    write_comparison(results, experiment, failures, out / "report.html")
    return results, len(failures)


def write(results: Results, size: Size, page: Path) -> None:
    """Write the part of the page that belongs to this size."""
    text = splice(page.read_text(encoding="utf-8"), generated(results, size.experiment), *marks(size))
    with replacing(page) as file:
        file.write(text.encode())


def marks(size: Size) -> tuple[str, str]:
    """Where its tables begin and end."""
    return f"<!-- {size.mark} -->", f"<!-- /{size.mark} -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab", description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    help_full, help_published = "the full comparison: 40 minutes on two cores", "the published rules: as long"
    sizes.add_argument("--full", dest="size", action="store_const", const=FULL, default=SHORT, help=help_full)
    sizes.add_argument("--published", dest="size", action="store_const", const=PUBLISHED, help=help_published)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "lab", help="folder of the finished trials")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "lab.md", help="page whose tables are written")
    options = parser.parse_args()
    size, console = options.size, Console()
    splice(options.page.read_text(encoding="utf-8"), "", *marks(size))  # fails now if the page cannot be written
    results, failed = run(size, options.out, options.workers, console)
    print_tables(results, console)
    write(results, size, options.page)
    if size.kept:
        write_results(results, RESULTS / size.kept)
    print(options.page)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
