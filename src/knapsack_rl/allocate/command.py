"""`knapsack-rl allocate`: read pass rates, divide a budget of rollouts, write the counts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from knapsack_rl.config import RULES, AllocationConfig, from_dialect
from knapsack_rl.console.arguments import file_name, whole_number

# Options by the core fields that they set.
ALIASES = {
    "average": "--average", "min_count": "--min", "max_count": "--max", "min_group": "--min-group", "pool": "--pool",
    "rule": "--rule",
}  # fmt: skip
# The most rollouts of a plan, and of a prompt: time and memory grow with both.
MOST_ROLLOUTS, MOST_OF_A_PROMPT = 10**8, 10**5

EXAMPLES = """
the input has one row per prompt, with the columns
  successes, attempts       0 attempts: a prompt never seen
  pass_rate (or p)          taken as exact without a column `attempts`
  prompt_id (or id)         optional; rows are numbered from 1 without it
CSV may be separated by commas, semicolons or tabs, and JSON be lines or one array. The output has the columns
prompt_id and count, then all others of the input, such as the prompt; it can be the input of another call.

examples:
  knapsack-rl allocate rates.csv --average 8 --output counts.csv
  knapsack-rl allocate rates.jsonl --budget 2048 --max 128 --explain
  printf 'id,p\\na,0.5\\nb,0.01\\n' | knapsack-rl allocate --budget 16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "input", nargs="?", default="-", metavar="FILE", help="CSV, JSON or Parquet (default: standard input)"
    )
    total = parser.add_mutually_exclusive_group()
    total.add_argument("--budget", type=whole_number(), metavar="N", help="rollouts in all")
    total.add_argument(
        "--average", type=whole_number(), metavar="N", help="rollouts per prompt on average (default: 8)"
    )
    parser.add_argument(
        "--pool", type=whole_number(), default=1, metavar="N", help="prompts of the file for each that is to be trained"
        " on: the rollouts of one prompt in N, and any prompt may get none",
    )  # fmt: skip
    parser.add_argument(
        "--min", type=whole_number(), metavar="N", help="least per prompt; 0: any may get none (default: --min-group)"
    )
    parser.add_argument(
        "--max", type=whole_number(), metavar="N", help="most per prompt (default: 128, or 4 times --average)"
    )
    parser.add_argument(
        "--min-group", type=whole_number(), default=AllocationConfig.min_group, metavar="N",
        help="a prompt gets none, or at least this many",
    )  # fmt: skip
    parser.add_argument(
        "--rule",
        choices=RULES,
        default=AllocationConfig.rule,
        help="calibrated: expected value under beliefs that all rows share; beta: under a belief about each row by "
        "itself; paper: the authors' rule, with prompts of fewer than 8 attempts as unseen; uniform: equal counts, "
        "without limits",
    )
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "parquet"), help="format of the input (default: by its name or content)"
    )
    parser.add_argument(
        "--output", type=file_name, metavar="FILE", help="file for the counts (default: standard output)"
    )
    parser.add_argument(
        "--to",
        choices=("csv", "jsonl", "parquet"),
        help="format of the output (default: by its name, else as the input)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="print belief, value and limits of each prompt, and the price"
    )
    parser.add_argument("--rows", type=whole_number(), default=40, metavar="N", help="prompts that --explain prints")


def run(arguments: argparse.Namespace) -> int:
    """Read the pass rates, plan, write the counts and explain them.

    Raises:
        ValueError, OSError, ModuleNotFoundError: wrong options or input, in one line.
    """
    from knapsack_rl.allocate.decide import decide
    from knapsack_rl.allocate.output import STANDARD_OUTPUT, counts_as, output_format, write_output
    from knapsack_rl.allocate.rows import detect_format, read_evidence

    config = _config(arguments)
    assert config.pool is not None and config.min_count is not None and config.max_count is not None
    output = None if arguments.output is None or str(arguments.output) in STANDARD_OUTPUT else arguments.output
    name, data = _read(arguments.input)
    file_format = arguments.format or detect_format(name, data)
    evidence = read_evidence(data, name, file_format)
    size = len(evidence.prompt_ids)
    budget = config.average * size // config.pool if arguments.budget is None else arguments.budget
    if budget > MOST_ROLLOUTS:
        raise ValueError(f"{budget:,} rollouts are more than the {MOST_ROLLOUTS:,} that this command divides")
    most = min(config.max_count, max(budget, config.min_count, config.min_group))  # no prompt can get more than all
    if most > MOST_OF_A_PROMPT:
        raise ValueError(f"--max is {config.max_count}: this command plans at most {MOST_OF_A_PROMPT:,} of a prompt")
    decision = decide(evidence, config.rule, budget, config.min_count, most, config.min_group)
    to = arguments.to or output_format(output, file_format)
    delimiter = _delimiter(output, to, data, file_format)
    write_output(counts_as(to, decision.plan, evidence.columns, delimiter), output)
    if arguments.explain:
        from knapsack_rl.allocate.explain import explanation

        # Counts on standard output stay machine-readable.
        stream = sys.stderr if output is None else sys.stdout
        if stream is not None:
            stream.write(explanation(decision, arguments.rule, arguments.rows))
    return 0


def _config(arguments: argparse.Namespace) -> AllocationConfig:
    """The options as a checked configuration; --budget leaves the average open, so any valid one will do."""
    given = {name: getattr(arguments, name.lstrip("-").replace("-", "_")) for name in ALIASES.values()}
    if arguments.budget is not None:
        given["--average"] = max(arguments.min or 0, arguments.min_group, 2)
    return from_dialect(ALIASES, {name: value for name, value in given.items() if value is not None})


def _read(source: str) -> tuple[str, bytes]:
    if not source:
        raise ValueError("the name of the input is empty: name a file, or - for standard input")
    if source != "-":
        return source, Path(source).read_bytes()
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("no input: name a file, or pipe CSV or JSON lines to standard input")
    return "standard input", sys.stdin.buffer.read()


def _delimiter(output: Path | None, to: str, data: bytes, file_format: str) -> str:
    """Between the cells of the output: tabs by its name, else as in the input."""
    from knapsack_rl.console.rows import delimiter_of

    if output is not None and output.suffix.lower() == ".tsv":
        return "\t"
    if to != "csv" or file_format != "csv" or (output is not None and output.suffix.lower() == ".csv"):
        return ","
    return delimiter_of(data.partition(b"\n")[0].decode("utf-8-sig"))
