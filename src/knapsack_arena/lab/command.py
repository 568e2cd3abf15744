"""`knapsack-rl lab`: rules side by side on small language models whose true success rates are known exactly."""

from __future__ import annotations

import argparse
from pathlib import Path

from knapsack_arena.compare.command import add_run_arguments
from knapsack_rl.console.arguments import whole_number

RULES = "uniform,paper,beta,calibrated,calibrated-pool,calibrated-pilot,oracle,oracle-pool"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--rules", default=RULES, metavar="A,B,...", help="names of rules, or FILE.py:NAME, a file of yours"
        " that is run, each with an optional"
        " suffix: @prompt weighs all prompts alike in the loss, @unscaled does not divide advantages by the group's"
        " deviation, @prompt-unscaled does both; 'all': every built-in rule")  # fmt: skip
    add("--regimes", default="skills,keys,tail", metavar="A,B,...", help="data sets with their base models, or"
        " FILE.py:NAME, a file of yours that is run")  # fmt: skip
    add("--seeds", type=whole_number(0, 10**5), default=5, metavar="N", help="runs of each rule on each regime")
    add("--first-seed", type=whole_number(0), default=10, metavar="K", help="the first of them; seeds"
        " below 10 are for tuning and not for reporting")  # fmt: skip
    add("--steps", type=whole_number(), metavar="N", help="steps under equal division, which define the"
        " budget; by default those of each regime")  # fmt: skip
    add_run_arguments(parser, Path("laboratory"))


def run(arguments: argparse.Namespace) -> int:
    """Run the comparison, print its tables, and write the table and the page.

    Returns:
        0, or 1 if a trial failed.

    Raises:
        ValueError, OSError, ModuleNotFoundError: the error in one line.
        KeyboardInterrupt: Ctrl-C; finished trials are kept.
    """
    from rich.console import Console

    from knapsack_arena.compare.experiment import names_in, run_experiment
    from knapsack_arena.compare.page import write_comparison
    from knapsack_arena.compare.results import write_results
    from knapsack_arena.compare.workers import make_backend
    from knapsack_arena.lab.experiment import build_base_models, lab_experiment
    from knapsack_arena.lab.tables import print_tables
    from knapsack_arena.registry import REGISTRY
    from knapsack_rl.console.text import printable_lines

    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"steps is {arguments.steps}: use at least 1")
    rules = tuple(rule for name in names_in(arguments.rules) for rule in (REGISTRY if name == "all" else (name,)))
    seeds = tuple(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    experiment = lab_experiment(rules, names_in(arguments.regimes), seeds, arguments.steps)
    backend = make_backend(arguments.workers, arguments.ray)
    console = Console()

    def say(text: str) -> None:
        console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)

    try:
        build_base_models(experiment, say)
        results, failures = run_experiment(experiment, arguments.output, backend, console)
    except KeyboardInterrupt:
        say("stopped: finished trials are kept, and the same command continues from there")
        raise
    print_tables(results, console)
    for failure in failures:
        say(f"failed: {failure.trial.name}: {failure.error}")
    write_results(results, arguments.output / "results.parquet")
    page = write_comparison(results, experiment, failures, arguments.output / "report.html")
    say(f"{arguments.output / 'results.parquet'}\n{page}")
    return 1 if failures else 0
