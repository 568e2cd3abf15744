"""Text from files and command lines, made safe to show in a terminal."""

from __future__ import annotations

# Longer messages are cut: an argument or a cell may be a megabyte long.
LONGEST_LINE = 2000


def printable(text: str) -> str:
    r"""The text with each unprintable character as its escape (``\x1b``): control characters, line ends, surrogates."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def printable_lines(text: str) -> str:
    """The text as `printable`, line by line."""
    return "\n".join(printable(line) for line in text.split("\n"))


def one_line(text: str) -> str:
    """The text on one line, white space joined, safe to show, and cut to `LONGEST_LINE` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
