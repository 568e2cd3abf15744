"""`knapsack-rl allocate`: read pass rates, divide a budget of rollouts, write the counts."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from knapsack_rl.config import AllocationConfig, from_dialect
from knapsack_rl.files import SUFFIXES, replacing

if TYPE_CHECKING:
    from knapsack_rl.plan import Plan

RULES = ("beta", "paper", "uniform")
# Options by the core fields that they set.
ALIASES = {"average": "--average", "min_count": "--min", "max_count": "--max", "rule": "--rule"}

EXAMPLES = """
the input has one row per prompt, with the columns
  successes, attempts       0 attempts: a prompt never seen
  pass_rate (or p)          taken as exact without a column `attempts`
  prompt_id (or id)         optional; rows are numbered from 1 without it

examples:
  knapsack-rl allocate rates.csv --average 8 --output counts.csv
  knapsack-rl allocate rates.jsonl --budget 2048 --max 128 --explain
  printf 'id,p\\na,0.5\\nb,0.01\\n' | knapsack-rl allocate --budget 16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "input", nargs="?", default="-", metavar="FILE", help="CSV, JSONL or Parquet (default: standard input)"
    )
    total = parser.add_mutually_exclusive_group()
    total.add_argument("--budget", type=_whole, metavar="N", help="rollouts in all")
    total.add_argument("--average", type=_whole, metavar="N", help="rollouts per prompt on average (8)")
    parser.add_argument("--min", type=_whole, default=2, metavar="N", help="least per prompt: 0, or at least 2 (2)")
    parser.add_argument("--max", type=_whole, default=128, metavar="N", help="most per prompt (128)")
    parser.add_argument(
        "--rule",
        choices=RULES,
        default="beta",
        help="beta: expected value under a Beta belief about each rate (default); paper: the authors' rule, with "
        "prompts of fewer than 8 attempts as unseen; uniform: equal counts, without limits",
    )
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "parquet"), help="format of the input (default: by its name or content)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file for the counts (default: standard output)")
    parser.add_argument(
        "--to", choices=("csv", "jsonl"), help="format of the output (default: by its name, else as the input)"
    )
    parser.add_argument(
        "--explain", action="store_true", help="print belief, value and limits of each prompt, and the price"
    )
    parser.add_argument("--rows", type=_whole, default=40, metavar="N", help="prompts that --explain prints (40)")


def run(arguments: argparse.Namespace) -> int:
    """Read the pass rates, plan, write the counts and explain them.

    Raises:
        ValueError, OSError, ModuleNotFoundError: wrong options or input, in one line.
    """
    from knapsack_rl.allocate.decide import decide
    from knapsack_rl.allocate.rows import detect_format, read_evidence

    name, data = _read(arguments.input)
    file_format = arguments.format or detect_format(name, data)
    evidence = read_evidence(data, name, file_format)
    config = _config(arguments)
    budget = config.average * len(evidence.prompt_ids) if arguments.budget is None else arguments.budget
    decision = decide(evidence, arguments.rule, budget, arguments.min, arguments.max)
    to = arguments.to or _output_format(arguments.output, file_format)
    _write(_counts(decision.plan, to), arguments.output)
    if arguments.explain:
        from knapsack_rl.allocate.explain import explanation

        # Counts on standard output stay machine-readable.
        stream = sys.stderr if arguments.output is None else sys.stdout
        stream.write(explanation(decision, arguments.rule, arguments.rows))
    return 0


def _config(arguments: argparse.Namespace) -> AllocationConfig:
    """The options as a checked configuration; --budget leaves the average open, so any valid one will do."""
    average = max(arguments.min, 2) if arguments.budget is not None else arguments.average
    given = {"--min": arguments.min, "--max": arguments.max, "--rule": arguments.rule, "pool": 1}
    return from_dialect(ALIASES, given if average is None else {**given, "--average": average})


def _read(source: str) -> tuple[str, bytes]:
    if source != "-":
        return source, Path(source).read_bytes()
    if sys.stdin.isatty():
        raise ValueError("no input: name a file, or pipe CSV or JSON lines to standard input")
    return "standard input", sys.stdin.buffer.read()


def _output_format(output: Path | None, input_format: str) -> str:
    named = SUFFIXES.get(output.suffix.lower()) if output is not None else None
    return "jsonl" if (named or input_format) == "jsonl" else "csv"


def _counts(plan: Plan, to: str) -> str:
    rows = zip(plan.prompt_ids, plan.counts_P.tolist(), strict=True)
    if to == "jsonl":
        return "".join(json.dumps({"prompt_id": prompt_id, "count": count}) + "\n" for prompt_id, count in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prompt_id", "count"])
    writer.writerows(rows)
    return text.getvalue()


def _write(text: str, output: Path | None) -> None:
    """Write to standard output, or all or nothing to a file."""
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    if output.is_dir():
        raise ValueError(f"{output} is a folder: --output takes a file")
    with replacing(output) as file:
        file.write(text.encode())


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
