"""Command lines: types of arguments, the form of help, suggestions for what was mistyped."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable
from pathlib import Path


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line ends of an epilog, and shows each default that exists and that the text does not state."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing or "default" in (action.help or "") else super()._get_help_string(action)


def whole_number(least: int = 0, most: int = 10**9) -> Callable[[str], int]:
    """An argument type: a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        # Python refuses to convert thousands of digits, with a message of its own.
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not least <= int(text) <= most:
            given = text if len(text) <= 40 else f"{text[:37]}..."
            raise argparse.ArgumentTypeError(
                f"{given!r} is not a whole number of at least {least}, and at most {most:,}"
            )
        return int(text)

    return parse


def finite_number(text: str) -> float:
    """An argument type: a number that is neither infinite nor NaN."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def file_name(text: str) -> Path:
    """An argument type: the name of a file or folder. An empty one, of a variable that is not set, is no name."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def suggestion(given: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` with the known name that is most like the given one; nothing if none is."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
