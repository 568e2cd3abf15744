"""`knapsack-rl report`: turn traces of runs into one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from knapsack_rl.console.arguments import file_name
from knapsack_rl.console.text import printable
from knapsack_rl.trace import TRACE_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "traces", nargs="+", type=file_name, metavar="TRACE", help=f"traces, or folders with {TRACE_NAME} files below"
    )
    parser.add_argument("--output", type=file_name, default=Path("report.html"), metavar="FILE", help="page to write")
    parser.add_argument(
        "--watch", action="store_true", help="write the page again as the runs train, and let it refresh itself in a"
        " browser, until Ctrl-C"
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print its path.

    Raises:
        ValueError, OSError, ModuleNotFoundError: a trace that cannot be read, or a missing package.
    """
    from knapsack_rl.report import find_traces, write_report

    if arguments.watch:
        from knapsack_rl.report.watch import watch

        watch(arguments.traces, arguments.output, lambda text: print(printable(text), flush=True))
    else:
        write_report(find_traces(arguments.traces), arguments.output)
    print(printable(str(arguments.output)))
    return 0
