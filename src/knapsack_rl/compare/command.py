"""`knapsack-rl compare`: rules side by side on simulated policies, at the same budget."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add(
        "--rules", default="all", metavar="A,B,...", help="names of rules, or path.py:name; 'all' is every built-in one"
    )
    add("--presets", default="easy,balanced,hard,late", metavar="A,B,...", help="simulated populations, or traces of"
        " runs: each stands for prompts like its own, as its policy found them")  # fmt: skip
    add("--seeds", type=int, default=5, metavar="N", help="runs of each rule on each preset, with seeds from 0")
    add("--prompts", type=int, default=4096, metavar="N", help="size of the data set")
    add("--groups", type=int, default=256, metavar="N", help="prompts of a step under equal division")
    add("--num-generations", type=int, default=8, metavar="N", help="rollouts per prompt on average")
    add("--steps", type=int, default=300, metavar="N", help="steps that an equal division takes: they set the budget")
    add("--budget", choices=("rollouts", "tokens"), default="rollouts", help="what every rule spends the same of")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time")
    add("--out", type=Path, default=Path("comparison"), metavar="DIR", help="folder of the results; what is finished"
        " there is not run again")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the comparison, print the ranking, and write the table and the page.

    Returns:
        0, or 1 if a cell failed.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what is wrong, in one line.
        KeyboardInterrupt: Ctrl-C; finished cells are kept.
    """
    from rich.console import Console

    from knapsack_rl.compare.cells import Arena
    from knapsack_rl.compare.match import Match, play_match, rules_named
    from knapsack_rl.compare.page import write_comparison
    from knapsack_rl.compare.ranking import rank, ranking_table
    from knapsack_rl.compare.results import write_results
    from knapsack_rl.entrants import ENTRANTS

    arena = Arena(
        arguments.prompts, arguments.groups, arguments.num_generations, arguments.steps, arguments.budget
    )  # fmt: skip
    named = rules_named(arguments.rules)
    rules = tuple(rule for name in named for rule in (ENTRANTS if name == "all" else (name,)))
    match = Match(rules, rules_named(arguments.presets), tuple(range(arguments.seeds)), arena)
    console = Console()
    try:
        results, failures = play_match(match, arguments.out, arguments.workers, console)
    except KeyboardInterrupt:
        console.print("stopped: finished cells are kept, and the same command goes on from there")
        raise
    seeds = len(match.seeds)
    certainty = (
        f"95 % interval over {seeds} seeds" if seeds > 1 else "one seed, which says nothing about how sure that is"
    )
    title = f"Mean success rate ahead of uniform after the same {arena.budget}, {certainty}"
    console.print(ranking_table(rank(results), results.presets, title, console.width))
    for failure in failures:
        console.print(f"failed: {failure.cell.name}: {failure.error}", markup=False, highlight=False, soft_wrap=True)
    write_results(results, arguments.out / "results.parquet")
    page = write_comparison(results, match, failures, arguments.out / "report.html")
    console.print(f"{arguments.out / 'results.parquet'}\n{page}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0
