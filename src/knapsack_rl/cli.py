"""The command line: `knapsack-rl train | allocate | replay | report | compare | lab | verl-args`.

Only the chosen command's module is imported, and that module imports what is heavy when it runs, so that `--help` is
instant. An error that the user can mend is one line on standard error and exit code 2; a traceback means a defect.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# Name of the command -> (module with `add_arguments` and `run`, extra it may need, what it does).
COMMANDS = {
    "train": ("knapsack_rl.train.cli", "trl", "train a language model by GRPO, rollouts allocated by the knapsack"),
    "allocate": (
        "knapsack_rl.allocate.command",
        "parquet",
        "divide a rollout budget over prompts with known pass rates",
    ),
    "replay": ("knapsack_rl.replay.command", "arena", "try rules on recorded rollouts: a trace, or a table"),
    "report": ("knapsack_rl.report.command", "report", "turn traces of runs into one HTML page"),
    "compare": (
        "knapsack_rl.compare.command",
        "arena",
        "run rules side by side on simulated policies, at the same budget",
    ),
    "lab": (
        "knapsack_rl.lab.command",
        "trl,arena",
        "run rules side by side on small language models whose true success rates are known",
    ),
    "verl-args": ("knapsack_rl.verl.command", "verl", "print the overrides that make a verl command a knapsack run"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the page of usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"knapsack-rl: error: {message} (`{self.prog} --help` lists the options)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0; 2 after an error that was explained; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        parser = _parser(chosen)
        arguments, extra = parser.parse_known_args(words)
        module, _, _ = COMMANDS[arguments.command]
        command = importlib.import_module(module)
        if arguments.command == "train":
            # What we do not know belongs to TRL: any field of its configuration is an option.
            return int(command.run(arguments, extra))
        if extra:
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
        return int(command.run(arguments))
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            return _reader_has_gone()
        print(f"knapsack-rl: error: {_explained(error, chosen)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("knapsack-rl: interrupted", file=sys.stderr)
        return 130


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    from knapsack_rl import __version__

    parser = _Parser(
        prog="knapsack-rl",
        description="Spend the rollout budget of GRPO where it teaches.",
        epilog="`knapsack-rl COMMAND --help` describes a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"knapsack-rl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, _, purpose) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == chosen:
            importlib.import_module(module).add_arguments(command)
    return parser


def _explained(error: Exception, chosen: str | None) -> str:
    """The error in one line; what is not installed comes with the command that installs it."""
    if (
        isinstance(error, ModuleNotFoundError)
        and chosen in COMMANDS
        and not (error.name or "").startswith("knapsack_rl")
    ):
        extra = COMMANDS[chosen][1]
        return f"{error.name or error} is not installed: pip install 'knapsack-rl[{extra}]'"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _reader_has_gone() -> int:
    """As when piped into `head`: end quietly, and let nothing be flushed into the closed pipe at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
