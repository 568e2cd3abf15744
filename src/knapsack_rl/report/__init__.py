"""Show traces of runs as one self-contained HTML page. Needs jinja2 and matplotlib, imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(traces: Sequence[Path], out: Path, refresh: int | None = None) -> Path:
    """Write one page that compares runs; it loads no other file and needs no network.

    Args:
        traces: trace files of finished, running or killed runs; an empty file is allowed.
        out: the page, written all or nothing; the same traces give the same bytes.
        refresh: seconds after which a browser loads the page again, for one that is written again; it says when it was
            written.

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
    return write_page(render([read_trace(path) for path in traces], refresh), Path(out))


def find_traces(named: Sequence[Path]) -> list[Path]:
    """The traces that are named or lie below the named folders.

    Raises:
        FileNotFoundError: a folder without a trace.
        ValueError: no regular file.
    """
    from knapsack_rl.files import find_files
    from knapsack_rl.trace import TRACE_NAME

    try:
        traces = find_files(named, TRACE_NAME)
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None
    for path in traces:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path} is no regular file: name a trace, or a folder with traces below")
    return traces
