"""`knapsack-rl replay`: what other rules would have planned, on a trace or on a table of recorded rollouts."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """
SOURCE is one of
  a trace             trace.jsonl of any run, or the folder that holds it: each rule gets every step's
                      prompts and budget
  a table             .csv, .jsonl or .parquet with the columns `prompt` (or prompt_id, or id) and `rewards`
                      (a list each) or `reward` (a row per rollout); `tokens` may stand beside. Prompts come
                      in seeded epochs, and each recorded rollout is used once
  a table with `step` a row per rollout or group, with the step it was made in: replayed like a trace

examples:
  knapsack-rl replay runs/uniform/trace.jsonl --rules uniform,knapsack-rl,posterior
  knapsack-rl replay runs/uniform --rules posterior,my_rule.py:mine --json replay.json
  knapsack-rl replay rollouts.parquet --groups 64 --average 8 --parquet steps.parquet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a trace, or a table of rollouts")
    parser.add_argument(
        "--rules", default="uniform,knapsack-rl,posterior", metavar="A,B,...",
        help="rules by name, or path.py:name for one of yours (uniform,knapsack-rl,posterior)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_whole, default=0, metavar="N", help="of every draw (0)")
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help="steps to play (a trace: all; a table: half of it)"
    )
    parser.add_argument("--min", type=_whole, metavar="N", help="least rollouts (as in the run, or 2)")
    parser.add_argument("--max", type=_positive, metavar="N", help="most rollouts (as in the run, or 128)")
    parser.add_argument(
        "--prompts", type=_positive, metavar="N",
        help="size of the data set, by which beliefs fade (as the trace says; else the prompts that it names)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("csv", "jsonl", "parquet"), help="of a table (by its name)")
    parser.add_argument(
        "--groups", type=_positive, metavar="N",
        help="tables: prompts of a step (256, or a quarter of all if that is less)",
    )  # fmt: skip
    parser.add_argument("--average", type=_positive, metavar="N", help="tables: rollouts per prompt on average (8)")
    parser.add_argument("--threshold", type=float, metavar="X", help="tables: least reward that is a success (1.0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary and a row per rule and step here")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write the rows here")


def run(arguments: argparse.Namespace) -> int:
    """Replay, print, write.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what is wrong with the source or the rules, in one line.
    """
    from knapsack_rl.replay.run import replay

    return replay(arguments)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
