"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable


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
