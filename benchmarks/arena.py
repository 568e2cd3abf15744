"""The arena: ``python -m benchmarks.arena`` runs every built-in rule on every preset and writes docs/arena.md.

Writes the part between the page's marks, and the pictures; the prose around it is kept. Finished trials are kept too,
so that a stopped run continues, and an interactive page is written beside them. All numbers but times are seeded.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.arena_pictures import draw_allocation, draw_ranking
from benchmarks.arena_tables import generated
from knapsack_arena.compare.experiment import Experiment, run_experiment, simulator_experiment
from knapsack_arena.compare.page import write_comparison
from knapsack_arena.compare.results import Results, write_results
from knapsack_arena.compare.trials import TrialSettings
from knapsack_arena.compare.workers import make_backend
from knapsack_arena.registry import REGISTRY, VARIANTS
from knapsack_arena.simulator import PRESETS
from knapsack_rl.files import replacing

ROOT: Final = Path(__file__).parents[1]
RULES: Final = tuple(name for name in REGISTRY if name not in VARIANTS)
BEGIN, END = "<!-- generated -->", "<!-- /generated -->"


@dataclass(frozen=True)
class Size:
    """Size of a run: settings of both comparisons, and the number of seeds of each."""

    settings: TrialSettings
    seeds: int
    seeds_of_tokens: int


FULL: Final = Size(TrialSettings(prompts=4096, groups=256, average=8, steps=300), seeds=5, seeds_of_tokens=4)
QUICK: Final = Size(TrialSettings(prompts=512, groups=32, average=8, steps=30), seeds=2, seeds_of_tokens=2)


def experiments(size: Size, rules: tuple[str, ...]) -> dict[str, Experiment]:
    """The comparison at the same rollouts, and the one at the same tokens."""
    in_tokens = replace(size.settings, budget="tokens")
    return {
        "rollouts": simulator_experiment(rules, tuple(PRESETS), tuple(range(size.seeds)), size.settings),
        "tokens": simulator_experiment(rules, tuple(PRESETS), tuple(range(size.seeds_of_tokens)), in_tokens),
    }


def run(
    size: Size, rules: tuple[str, ...], out: Path, workers: int, console: Console
) -> tuple[dict[str, Results], int]:
    """Run the trials that are not finished.

    Returns:
        The results by budget, and the number of failed trials.
    """
    found, failed = {}, 0
    for name, experiment in experiments(size, rules).items():
        console.print(f"{len(experiment.trials)} trials at the same {name}")
        found[name], failures = run_experiment(experiment, out / name, make_backend(workers), console)
        write_results(found[name], out / name / "results.parquet")
        write_comparison(found[name], experiment, failures, out / name / "report.html")
        failed += len(failures)
    return found, failed


def splice(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with this text between its marks, and everything else as it was.

    Raises:
        ValueError: marks that are missing, occur twice, or stand in the wrong order.
    """
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed or begin in rest or end in before or end in after:
        raise ValueError(f"the page needs one {begin} and, after it, one {end}: put them where the tables belong")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def write(found: dict[str, Results], size: Size, page: Path) -> None:
    """The pictures beside the page, then its generated part."""
    text = splice(page.read_text(encoding="utf-8"), generated(found, size.settings))
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    pictures = {"arena-ranking.svg": draw_ranking(found), "arena-allocation.svg": draw_allocation(found["rollouts"])}
    for path, content in {**{images / name: svg for name, svg in pictures.items()}, page: text}.items():
        with replacing(path) as file:
            file.write(content.encode())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arena", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small arena, to try the command")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "arena", help="folder of the finished trials")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "arena.md", help="page whose generated part is written"
    )
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    splice(options.page.read_text(encoding="utf-8"), "")  # fails now if the page cannot be written
    found, failed = run(size, RULES, options.out, options.workers, Console())
    write(found, size, options.page)
    print(options.page)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
