"""`knapsack-rl report --watch`: a page that follows runs while they train."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from knapsack_rl.report import find_traces, write_report

# Seconds between two looks at the traces, where reading them does not take longer.
EVERY = 5.0


def watch(
    named: Sequence[Path], output: Path, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> None:
    """Write the page whenever a trace has changed or a new one is there, until Ctrl-C; then once more, as it stays.

    A quarter of the time at most is spent on pages: of long traces they come less often.

    Args:
        named: traces, or folders below which there are or will be some.
        output: the page, which a browser loads again by itself until the end.
        say: is told once why there is no page yet, and when there is one.
        pause: waits a number of seconds.

    Raises:
        ValueError: a file that is not a trace.
        ModuleNotFoundError: jinja2 or matplotlib is missing.
    """
    traces: list[Path] = []
    seen: list[tuple[Path, int, int]] = []
    told, wait = "", EVERY
    try:
        while True:
            began = time.monotonic()
            try:
                traces = find_traces(named)
                now = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in traces]
                if now != seen:
                    write_report(traces, output, refresh=math.ceil(wait))
                    seen, words = now, f"{output} follows {len(traces)} run{'s'[: len(traces) != 1]}; Ctrl-C ends it"
                else:
                    words = told
            except OSError as error:  # not there yet, or renamed by a new run this moment
                words = f"waiting: {error}"
            if words != told:
                say(words)
                told = words
            wait = max(EVERY, 3 * (time.monotonic() - began))
            pause(wait)
    except KeyboardInterrupt:
        if seen:
            write_report(traces, output)
