"""`knapsack-rl allocate`: how many rollouts each prompt should get, given its pass rate."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from knapsack_rl.files import replacing

if TYPE_CHECKING:
    from knapsack_rl.plan import Plan

EXAMPLES = """
the input has one row per prompt, with the columns
  successes, attempts       attempts = 0 is a prompt never seen
  pass_rate (or p)          a rate without `attempts` is taken as exact
  prompt_id (or id)         optional; else rows are numbered from 1

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
        "input", nargs="?", default="-", metavar="FILE", help="CSV, JSONL or Parquet; - or nothing: stdin"
    )
    total = parser.add_mutually_exclusive_group()
    total.add_argument("--budget", type=_whole, metavar="N", help="rollouts in all")
    total.add_argument("--average", type=_positive, default=8.0, metavar="N", help="rollouts per prompt on average (8)")
    parser.add_argument("--min", type=_whole, default=2, metavar="N", help="least per prompt: 0, or at least 2 (2)")
    parser.add_argument("--max", type=_whole, default=128, metavar="N", help="most per prompt (128)")
    parser.add_argument(
        "--method",
        choices=("posterior", "paper", "uniform"),
        default="posterior",
        help="posterior: expected value under the uncertainty of each rate (default); paper: the authors' rule, "
        "prompts with fewer than 8 attempts count as unseen; uniform: equal counts, whatever the limits",
    )
    parser.add_argument("--format", choices=("csv", "jsonl", "parquet"), help="of the input (by its name or content)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the counts here (standard output)")
    parser.add_argument("--to", choices=("csv", "jsonl"), help="of the output (by its name, else as the input)")
    parser.add_argument("--explain", action="store_true", help="show belief, value, price and who was held by a limit")
    parser.add_argument("--rows", type=_whole, default=40, metavar="N", help="prompts that --explain shows (40)")


def run(arguments: argparse.Namespace) -> int:
    """Read, decide, write, explain.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what is wrong with the input, in one line.
    """
    from knapsack_rl.allocate.decide import decide
    from knapsack_rl.allocate.rows import detect_format, read_evidence

    name, data = _read(arguments.input)
    file_format = arguments.format or detect_format(name, data)
    evidence = read_evidence(data, name, file_format)
    budget = arguments.budget
    if budget is None:
        budget = round(arguments.average * len(evidence.prompt_ids))
    decision = decide(evidence, arguments.method, budget, arguments.min, arguments.max)
    to = arguments.to or _output_format(arguments.output, file_format)
    _write(_counts(decision.plan, to), arguments.output)
    if arguments.explain:
        from knapsack_rl.allocate.explain import explanation

        # Where the counts go to standard output, the table must not get between them.
        stream = sys.stderr if arguments.output is None else sys.stdout
        stream.write(explanation(decision, arguments.method, arguments.rows))
    return 0


def _read(source: str) -> tuple[str, bytes]:
    if source != "-":
        return source, Path(source).read_bytes()
    if sys.stdin.isatty():
        raise ValueError("no input: name a file, or pipe CSV or JSON lines into standard input")
    return "standard input", sys.stdin.buffer.read()


def _output_format(output: Path | None, input_format: str) -> str:
    by_suffix = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if output is not None and output.suffix.lower() in by_suffix:
        return by_suffix[output.suffix.lower()]
    return "jsonl" if input_format == "jsonl" else "csv"


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
    """To standard output, or all or nothing to a file: a reader never sees half of it."""
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    if output.is_dir():
        raise ValueError(f"{output} is a folder: --output names a file")
    with replacing(output) as file:
        file.write(text.encode())


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number
