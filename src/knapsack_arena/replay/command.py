"""`knapsack-rl replay`: what other rules would have planned, on a trace or on a table of recorded rollouts."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from knapsack_rl.console.arguments import file_name, finite_number, whole_number

if TYPE_CHECKING:  # imported when the command runs, so that --help is instant
    from rich.progress import Progress

    from knapsack_arena.registry import RuleContext
    from knapsack_arena.replay.output import RuleSummary, StepTable
    from knapsack_arena.replay.replay import ReplayedRule
    from knapsack_arena.replay.source import ReplaySource

EXAMPLES = """
SOURCE is one of
  a trace             trace.jsonl of any run, or the folder that holds it: each rule gets every step's
                      prompts and budget
  a table             .csv, .jsonl or .parquet with the columns `prompt` (or prompt_id, or id) and `rewards`
                      (a list each) or `reward` (a row per rollout); `tokens` is optional. Prompts come in
                      seeded passes, and each recorded rollout is used at most once
  a table with `step` a row per rollout or group, with the step it was made in: replayed like a trace

examples:
  knapsack-rl replay runs/uniform/trace.jsonl --rules uniform,paper,beta,calibrated
  knapsack-rl replay runs/uniform --rules beta,my_rule.py:mine --output replay.json
  knapsack-rl replay rollouts.parquet --groups 64 --average 8 --output steps.parquet
"""
DEFAULT_RULES = "uniform,paper,beta,calibrated"

# Width of the tables; a narrower terminal wraps them, so that no digit is cut off.
_WIDTH = 150


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    positive, natural = whole_number(1), whole_number(0)
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=file_name, metavar="SOURCE", help="a trace, or a table of rollouts")
    parser.add_argument(
        "--rules", default=DEFAULT_RULES, metavar="A,B,...",
        help="rules by name, or FILE.py:NAME, a file of yours that is run",
    )  # fmt: skip
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of the order of rollouts")
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="steps to replay (default: all of a trace; half the rollouts of a table)",
    )
    parser.add_argument(
        "--min", type=natural, metavar="N", help="least rollouts of a prompt (default: as in the run, or 2)"
    )
    parser.add_argument(
        "--max", type=positive, metavar="N", help="most rollouts of a prompt (default: as in the run, or 128)"
    )
    parser.add_argument(
        "--prompts", type=positive, metavar="N",
        help="size of the data set, which sets the half-life of beliefs (default: as in the run, or the prompts there"
        " are)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "parquet"), help="format of a table (default: by its suffix)"
    )
    parser.add_argument(
        "--groups", type=positive, metavar="N",
        help="tables: prompts of a step (default: 256, or a quarter of all if that is less)",
    )  # fmt: skip
    parser.add_argument(
        "--average", type=positive, metavar="N", help="tables: rollouts per prompt on average (default: 8)"
    )
    parser.add_argument(
        "--success-threshold",
        type=finite_number,
        metavar="X",
        help="tables: least reward that is a success (default: 1)",
    )
    parser.add_argument(
        "--output", type=file_name, action="append", default=[], metavar="FILE",
        help="a row per rule and step: FILE.parquet, or FILE.json with the summary; may be given twice",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Replay the source, print the results, write the files.

    Raises:
        ValueError: a source or a rule that cannot be used, or no rule that could replay a single step.
        OSError: a file that cannot be read or written.
        ModuleNotFoundError: a library that is not installed.
    """
    from rich.console import Console
    from rich.progress import Progress

    from knapsack_arena.replay.output import StepTable, print_results, summary_fields
    from knapsack_arena.replay.source import open_source

    if options.source.exists() and not (options.source.is_file() or options.source.is_dir()):
        raise ValueError(f"{options.source} is no regular file: it is read twice, so save it first")
    for path in options.output:  # before a long replay, not after it
        if not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file")
        if path.suffix not in (".json", ".parquet"):
            raise ValueError(f"--output is {path}: its format goes by its name, so end it with .json or .parquet")
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        reading = progress.add_task(
            "reading", total=options.source.stat().st_size if options.source.is_file() else None
        )
        source = open_source(options, lambda done: progress.update(reading, completed=done))
        progress.remove_task(reading)
        table = StepTable()
        rules = make_rules(options.rules, source.context)
        for rule in rules:
            rule.stopped_reason = source.refused.get(rule.name)
        summaries = replay_source(source, rules, table, progress)
    source = replace(source, notes=(*source.notes, *not_repeated(source, summaries)))
    for path in options.output:
        if path.suffix == ".json":
            table.write_json(path, summary_fields(source, options.source, summaries))
        else:
            table.write_parquet(path)
    print_results(Console(width=max(shutil.get_terminal_size().columns, _WIDTH)), source, summaries)
    return 0


def not_repeated(source: ReplaySource, summaries: Sequence[RuleSummary]) -> Iterator[str]:
    """A note if the rule that made the record did not repeat its plans."""
    for summary in summaries:
        same = summary.averages.means().get("same_plan", 1.0) if summary.averages.steps else 1.0
        if summary.name == source.recorded_rule and same < 1:
            yield (
                f"{summary.name} made this record, and repeats {same:.1%} of its plans: the run learned outcomes in"
                " parts, planned steps before all outcomes of earlier ones were back, offered equal rows in one step"
                " (one prompt here), began with saved beliefs, or had an allocator or settings that the trace does not"
                " state."
            )


def make_rules(names: str, context: RuleContext) -> list[ReplayedRule]:
    """Build the rules of a comma-separated list.

    Raises:
        ValueError: no rule, one that is named twice, or one that cannot be built here.
    """
    from knapsack_arena.loader import resolve
    from knapsack_arena.replay.replay import ReplayedRule

    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise ValueError("--rules names no rule")
    for name in listed:
        if listed.count(name) > 1:
            raise ValueError(f"--rules names {name} twice")
    return [ReplayedRule(name, resolve(name, context)) for name in listed]


def replay_source(
    source: ReplaySource, rules: Sequence[ReplayedRule], table: StepTable, progress: Progress
) -> list[RuleSummary]:
    """Replay all steps, add their metrics to a table, and summarise each rule; the recorded plans come first.

    Raises:
        ValueError: no rule could replay a single step.
    """
    from knapsack_arena.replay.metrics import MetricAverager
    from knapsack_arena.replay.output import RuleSummary
    from knapsack_arena.replay.replay import RECORDED

    averages: dict[str, MetricAverager] = {}
    task = progress.add_task("replaying", total=source.steps)
    latest = None
    for name, step, metrics in source.replay(rules):
        averages.setdefault(name, MetricAverager()).add(metrics)
        table.add(name, step, metrics)
        if step != latest:
            latest = step
            progress.advance(task)
    if not any(rule.name in averages for rule in rules):
        raise ValueError("; ".join(f"{rule.name} {rule.stopped_reason}" for rule in rules))
    recorded = [RuleSummary(RECORDED, averages[RECORDED])] if RECORDED in averages else []
    return recorded + [
        RuleSummary(rule.name, averages.get(rule.name, MetricAverager()), rule.stopped_reason) for rule in rules
    ]
