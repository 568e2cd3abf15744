"""The command line: `knapsack-rl COMMAND`, also `python -m knapsack_rl`.

Only the chosen command's module is imported, and that module imports what is heavy when it runs, so that `--help` is
instant. An error that the user can correct is one line on standard error and exit status 2. Anything else is a defect:
its traceback goes to a file, and one line says so, with exit status 70.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NoReturn, TypeAlias

from knapsack_rl.console.arguments import HelpFormatter, suggestion
from knapsack_rl.console.failures import explained, report_defect
from knapsack_rl.console.text import one_line

# Exit statuses besides 0; a command that ran may return others.
REFUSED: Final = 2
DEFECT: Final = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED: Final = 130

# Name of the command -> (module with `add_arguments` and `run`, extra it may need, what it does).
Commands: TypeAlias = Mapping[str, tuple[str, str, str]]

OURS: Commands = {
    "train": ("knapsack_rl.train.command", "trl", "train a language model by GRPO, rollouts allocated by the knapsack"),
    "allocate": (
        "knapsack_rl.allocate.command",
        "parquet",
        "divide a rollout budget over prompts with known pass rates",
    ),
    "features": (
        "knapsack_rl.tasks.features_command",
        "trl",
        "write a file of a model's hidden states of each prompt, for verl and Tinker",
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

    # The parsers of the commands, by name, where this one has commands.
    parsers: Mapping[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"knapsack-rl: error: {one_line(message)} (`{self.prog} --help` lists the options)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0; 2 after an error that was explained; 70 after a defect, whose traceback was saved; 130 after
        Ctrl-C; else that of the command.

    Raises:
        SystemExit: by the parser, after ``--help`` or wrong usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        with _flushed_output():
            return _run(words, chosen)
    except BrokenPipeError:  # ends quietly, as when piped into `head`
        _drop_unwritten_output()
        return 0
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        extra = commands()[chosen][1] if chosen is not None and chosen in commands() else None
        reason = explained(error, extra)
        if isinstance(error, OSError):  # standard output may be what could not be written
            _drop_unwritten_output()
        if reason is not None:
            _say(f"error: {reason}")
            return REFUSED
        _say(report_defect(error, words))
        return DEFECT


def _run(words: Sequence[str], chosen: str | None) -> int:
    parser = _parser({chosen})
    first = words[0].partition("=")[0] if words else ""
    if first.startswith("-") and first not in ("--", *_options(parser)):
        parser.error(f"there is no option {first} before the command: write `knapsack-rl COMMAND {first}`")
    if chosen is not None and words[0] == chosen and chosen not in parser.parsers:
        hint = suggestion(chosen, parser.parsers) or f": choose from {', '.join(parser.parsers)}"
        parser.error(f"there is no command {chosen!r}{hint}")
    arguments, extra = parser.parse_known_args(words)
    command = importlib.import_module(commands()[arguments.command][0])
    if arguments.command == "train":
        # Options that are not ours are fields of TRL's configuration.
        return int(command.run(arguments, extra))
    if extra:
        _refuse_unknown(parser.parsers[arguments.command], extra)
    return int(command.run(arguments))


class _PrintCompletion(argparse.Action):
    """Prints the completion script of a shell, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        from knapsack_rl.console.completion import completion_script

        complete = _parser(set(commands()))
        sys.stdout.write(completion_script(given[1], complete, complete.parsers))
        parser.exit()


def _parser(wanted: Collection[str | None]) -> _Parser:
    """The parser of the program, with the options of these commands."""
    from knapsack_rl import __version__
    from knapsack_rl.console.completion import SHELLS

    parser = _Parser(
        prog="knapsack-rl",
        description="Decide how many rollouts each prompt gets in GRPO.",
        epilog="`knapsack-rl COMMAND --help` describes a command.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"knapsack-rl {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        action=_PrintCompletion,
        help="print a script that completes commands and options in this shell, and exit",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser.parsers = subparsers.choices
    for name, (module, _, purpose) in commands().items():
        command = subparsers.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            allow_abbrev=False,
            formatter_class=HelpFormatter,
        )
        if name in wanted:
            importlib.import_module(module).add_arguments(command)
    return parser


def _refuse_unknown(parser: argparse.ArgumentParser, extra: Sequence[str]) -> NoReturn:
    """Refuse arguments that the command does not have, with the option that was perhaps meant."""
    hint = suggestion(extra[0].partition("=")[0], _options(parser))
    parser.error(f"unrecognized arguments: {' '.join(extra)}{hint}")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Names of a parser's options."""
    return [name for action in parser._actions for name in action.option_strings]


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr is not None:  # None: it was closed before the start, and `print` would take standard output
            print(f"knapsack-rl: {line}", file=sys.stderr)


@contextlib.contextmanager
def _flushed_output() -> Iterator[None]:
    """Write what was printed before the block is left, so that a failure is met here and not when the process ends.

    Text that the terminal cannot encode is shown as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if sys.stdout is not None:  # None: it was closed before the start
            sys.stdout.flush()


def _drop_unwritten_output() -> None:
    """Send what standard output could not take to nowhere, lest the end of the process tries again."""
    stream: Any = sys.stdout
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
