"""`knapsack-rl lab`: rules side by side on small language models whose true success rates are known exactly."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

RULES = "uniform,knapsack-rl,posterior,calibrated,calibrated-pool,calibrated-pilot,oracle,oracle-pool"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--rules", default=RULES, metavar="A,B,...", help="names of rules, or path.py:name, each with @prompt behind it"
        " where every prompt is to weigh the same in the loss, @unscaled where advantages are not to be divided by the"
        " group's deviation, @prompt-unscaled for both; 'all' is every built-in one")  # fmt: skip
    add("--regimes", default="skills,keys,tail", metavar="A,B,...", help="data sets with their base models, or"
        " path.py:name")  # fmt: skip
    add("--seeds", type=int, default=5, metavar="N", help="runs of each rule on each regime")
    add("--first-seed", type=int, default=10, metavar="K", help="the first of them: those below 10 are for tuning,"
        " and not to be reported")  # fmt: skip
    add("--steps", type=int, metavar="N", help="steps that an equal division takes: they set the budget; by default"
        " what each regime says")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time, of one thread each")
    add("--out", type=Path, default=Path("laboratory"), metavar="DIR", help="folder of the results; what is finished"
        " there is not run again")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the comparison, print its tables, and write the table and the page.

    Returns:
        0, or 1 if a cell failed.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what is wrong, in one line.
        KeyboardInterrupt: Ctrl-C; finished cells are kept.
    """
    from rich.console import Console

    from knapsack_rl.compare.match import play_match, rules_named
    from knapsack_rl.compare.page import write_comparison
    from knapsack_rl.compare.results import write_results
    from knapsack_rl.entrants import ENTRANTS
    from knapsack_rl.lab.match import LabMatch
    from knapsack_rl.lab.results import LabResults
    from knapsack_rl.lab.tables import print_tables

    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"steps is {arguments.steps}: use at least 1")
    rules = tuple(rule for name in rules_named(arguments.rules) for rule in (ENTRANTS if name == "all" else (name,)))
    seeds = tuple(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    match = LabMatch(rules, rules_named(arguments.regimes), seeds, arguments.steps)
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    try:
        match.build_base_models(say)
        results, failures = play_match(match, arguments.out, arguments.workers, console)
    except KeyboardInterrupt:
        say("stopped: finished cells are kept, and the same command goes on from there")
        raise
    assert isinstance(results, LabResults)
    print_tables(results, console)
    for failure in failures:
        say(f"failed: {failure.cell.name}: {failure.error}")
    write_results(results, arguments.out / "results.parquet")
    page = write_comparison(results, match, failures, arguments.out / "report.html")
    say(f"{arguments.out / 'results.parquet'}\n{page}")
    return 1 if failures else 0
