"""Show traces of runs as one self-contained HTML page. Needs jinja2 and matplotlib, imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(traces: Sequence[Path], out: Path) -> Path:
    """Write one page that compares runs; it loads no other file and needs no network.

    Args:
        traces: trace files of finished, running or killed runs; an empty file is allowed.
        out: the page, written all or nothing; the same traces give the same bytes.

    Returns:
        ``out``.

    Raises:
        ValueError: no traces, or a file that is not a trace.
        OSError: a file that cannot be read or written.
        ModuleNotFoundError: jinja2 or matplotlib is missing.
    """
    from knapsack_rl.report.html import write_page
    from knapsack_rl.report.page import render
    from knapsack_rl.trace import read_trace

    if not traces:
        raise ValueError("a report needs at least one trace")
    return write_page(render([read_trace(path) for path in traces]), Path(out))
