"""`knapsack-rl compare`: rules side by side on simulated policies, at the same budget."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from knapsack_rl.console.arguments import file_name, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--rules", default="all", metavar="A,B,...", help="names of rules, or FILE.py:NAME, a file of yours that is"
        " run; 'all': every built-in rule")  # fmt: skip
    add("--presets", default="easy,balanced,hard,late", metavar="A,B,...", help="simulated populations, or traces of"
        " runs, each of which becomes a population fitted to it")  # fmt: skip
    add(
        "--seeds",
        type=whole_number(0, 10**5),
        default=5,
        metavar="N",
        help="runs of each rule on each preset, with seeds from 0",
    )
    add("--prompts", type=whole_number(0, 10**8), default=4096, metavar="N", help="number of prompts in the data set")
    add("--groups", type=whole_number(), default=256, metavar="N", help="prompts per step under equal division")
    add("--average", type=whole_number(), default=8, metavar="N", help="rollouts per prompt on average")
    add(
        "--steps",
        type=whole_number(),
        default=300,
        metavar="N",
        help="steps under equal division; they define the budget",
    )
    add("--budget", choices=("rollouts", "tokens"), default="rollouts", help="unit in which all rules spend the same")
    add_run_arguments(parser, Path("comparison"))


def add_run_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Declare the options that say where trials run, and where results go."""
    add = parser.add_argument
    add(
        "--workers",
        type=whole_number(0, 10**4),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes at a time, of one thread each",
    )
    add("--ray", metavar="ADDRESS", help="run trials as Ray tasks: 'local' starts Ray here with --workers CPUs, 'auto'"
        " or HOST:PORT connects to a running cluster")  # fmt: skip
    add(
        "--output", type=file_name, default=out, metavar="FOLDER", help="of the results; finished trials there are kept"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the comparison, print the ranking, and write the table and the page.

    Returns:
        0, or 1 if a trial failed.

    Raises:
        ValueError, OSError, ModuleNotFoundError: the error in one line.
        KeyboardInterrupt: Ctrl-C; finished trials are kept.
    """
    from rich.console import Console

    from knapsack_arena.compare.display import ranking_table
    from knapsack_arena.compare.experiment import names_in, run_experiment, simulator_experiment
    from knapsack_arena.compare.page import write_comparison
    from knapsack_arena.compare.ranking import rank
    from knapsack_arena.compare.results import write_results
    from knapsack_arena.compare.trials import TrialSettings
    from knapsack_arena.compare.workers import make_backend
    from knapsack_arena.registry import REGISTRY
    from knapsack_rl.console.text import printable_lines

    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"{arguments.output} is a file: --output names the folder of the results")
    settings = TrialSettings(arguments.prompts, arguments.groups, arguments.average, arguments.steps, arguments.budget)
    rules = tuple(rule for name in names_in(arguments.rules) for rule in (REGISTRY if name == "all" else (name,)))
    seeds = tuple(range(arguments.seeds))
    experiment = simulator_experiment(rules, names_in(arguments.presets), seeds, settings)
    backend = make_backend(arguments.workers, arguments.ray)
    console = Console()

    def say(text: str) -> None:
        console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)

    try:
        results, failures = run_experiment(experiment, arguments.output, backend, console)
    except KeyboardInterrupt:
        say("stopped: finished trials are kept, and the same command continues from there")
        raise
    certainty = f"95 % interval over {len(seeds)} seeds" if len(seeds) > 1 else "one seed, hence no interval"
    title = f"Mean success rate ahead of uniform after the same {settings.budget}, {certainty}"
    console.print(ranking_table(rank(results), results.presets, title, console.width))
    for failure in failures:
        say(f"failed: {failure.trial.name}: {failure.error}")
    write_results(results, arguments.output / "results.parquet")
    page = write_comparison(results, experiment, failures, arguments.output / "report.html")
    say(f"{arguments.output / 'results.parquet'}\n{page}")
    return 1 if failures else 0
