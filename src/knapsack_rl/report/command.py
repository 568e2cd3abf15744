"""`knapsack-rl report`: turn traces of runs into one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from knapsack_rl.console.text import printable
from knapsack_rl.files import find_files
from knapsack_rl.trace import TRACE_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "traces", nargs="+", type=Path, metavar="TRACE", help=f"traces, or folders with {TRACE_NAME} files below"
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="page to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print its path.

    Raises:
        ValueError, OSError, ModuleNotFoundError: a trace that cannot be read, or a missing package.
    """
    from knapsack_rl.report import write_report

    traces = find_files(arguments.traces, TRACE_NAME)
    for path in traces:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path} is no regular file: name a trace, or a folder with traces below")
    print(printable(str(write_report(traces, arguments.output))))
    return 0
