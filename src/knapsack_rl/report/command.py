"""`knapsack-rl report`: traces of runs in, one HTML page out."""

from __future__ import annotations

import argparse
from pathlib import Path

TRACE_NAME = "trace.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "traces", nargs="+", type=Path, metavar="TRACE", help=f"traces, or folders with a {TRACE_NAME} somewhere below"
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what is wrong with the traces, in one line.
    """
    from knapsack_rl.report import write_report

    print(write_report(found_traces(arguments.traces), arguments.output))
    return 0


def found_traces(paths: list[Path]) -> list[Path]:
    """The named files, and all traces below the named folders, each once and in order.

    Raises:
        ValueError: a folder without a trace.
    """
    found: list[Path] = []
    for path in paths:
        below = sorted(path.rglob(TRACE_NAME)) if path.is_dir() else [path]
        if not below:
            raise ValueError(f"there is no {TRACE_NAME} in {path} or below")
        found += [trace for trace in below if trace not in found]
    return found
