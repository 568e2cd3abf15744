"""The command line: `knapsack-rl COMMAND`, also `python -m knapsack_rl`.

Only the chosen command's module is imported, and that module imports what is heavy when it runs, so that `--help` is
instant. An error that the user can correct is one line on standard error and exit status 2; a traceback is a defect.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NoReturn, TypeAlias

# Name of the command -> (module with `add_arguments` and `run`, extra it may need, what it does).
Commands: TypeAlias = Mapping[str, tuple[str, str, str]]

OURS: Commands = {
    "train": ("knapsack_rl.train.command", "trl", "train a language model by GRPO, rollouts allocated by the knapsack"),
    "allocate": (
        "knapsack_rl.allocate.command",
        "parquet",
        "divide a rollout budget over prompts with known pass rates",
    ),
    "report": ("knapsack_rl.report.command", "report", "turn traces of runs into one HTML page"),
    "verl-args": ("knapsack_rl.verl.command", "verl", "print the overrides that make a verl command a knapsack run"),
}

# Packages add commands by an entry point of this group, whose value is a mapping like the one above.
GROUP = "knapsack_rl.commands"


@cache
def commands() -> Commands:
    """All commands: ours, and those of installed packages."""
    found = dict(OURS)
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.update(entry.load())
    return found


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage text in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"knapsack-rl: error: {message} (`{self.prog} --help` lists the options)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0; 2 after an error that was explained; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        parser = _parser(chosen)
        arguments, extra = parser.parse_known_args(words)
        module, _, _ = commands()[arguments.command]
        command = importlib.import_module(module)
        if arguments.command == "train":
            # Options that are not ours are fields of TRL's configuration.
            return int(command.run(arguments, extra))
        if extra:
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
        return int(command.run(arguments))
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            return _closed_pipe()
        print(f"knapsack-rl: error: {_explained(error, chosen)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("knapsack-rl: interrupted", file=sys.stderr)
        return 130


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    from knapsack_rl import __version__

    parser = _Parser(
        prog="knapsack-rl",
        description="Decide how many rollouts each prompt gets in GRPO.",
        epilog="`knapsack-rl COMMAND --help` describes a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"knapsack-rl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, _, purpose) in commands().items():
        command = subparsers.add_parser(
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
        and chosen is not None
        and chosen in commands()
        and not (error.name or "").startswith("knapsack_")
    ):
        extra = commands()[chosen][1]
        return f"{error.name or error} is not installed: pip install 'knapsack-rl[{extra}]'"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _closed_pipe() -> int:
    """End quietly, as when piped into `head`; nothing is flushed into the closed pipe at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
