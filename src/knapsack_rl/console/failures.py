"""Errors of a command: one line where the user can correct them, a saved traceback where they are a defect."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from knapsack_rl.console.text import one_line
from knapsack_rl.files import RUN_FILE_PREFIX


def explained(error: Exception, extra: str | None = None) -> str | None:
    """The error in one line; None for one that no input should be able to cause: a defect.

    Args:
        error: what a command raised.
        extra: the optional dependencies of the command, named where a module is missing.
    """
    if (place := place_in_own_file(error)) is not None:
        return one_line(f"{place} failed: {type(error).__name__}: {error}")
    if isinstance(error, ModuleNotFoundError) and extra is not None and not (error.name or "").startswith("knapsack_"):
        return one_line(f"{error.name or error} is not installed: pip install 'knapsack-rl[{extra}]'")
    if isinstance(error, MemoryError):
        return one_line(f"not enough memory for this input: {error}".removesuffix(": "))
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{_path(error.filename)}: {error.strerror}")
    if isinstance(error, ValueError | OSError | ImportError):
        return one_line(str(error)) or type(error).__name__
    return None


def place_in_own_file(error: BaseException) -> str | None:
    """``FILE.py:LINE`` of the last line of a user's own file (`run_file`) that the error passed; None if there is none.

    An error below that line counts as caused by it.
    """
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith(RUN_FILE_PREFIX)
    ]
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else None


def report_defect(error: Exception, words: Sequence[str]) -> str:
    """Save the traceback, and say in one line that this is a defect, where to report it, and with which file."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    try:
        saved = f"with the file {_save(error, words)}, which holds the traceback and the command line"
    except OSError as failed:
        saved = f"with the traceback, which could not be saved ({failed.strerror})"
    return one_line(f"this is a defect of knapsack-rl ({what}): report it {_where()}, {saved}")


def _save(error: Exception, words: Sequence[str]) -> Path:
    lines = [
        f"knapsack-rl {importlib.metadata.version('knapsack-rl')}, Python {platform.python_version()}, "
        f"{platform.platform()}\n",
        f"{shlex.join(['knapsack-rl', *words])}\n\n",
        *traceback.format_exception(error),
    ]
    # In the folder of temporary files, readable by this user alone: the working folder may not be writable.
    with tempfile.NamedTemporaryFile(
        "w", prefix="knapsack-rl-defect-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.writelines(lines)
    return Path(file.name)


def _where() -> str:
    """Where defects are reported, as the package's metadata say."""
    found = importlib.metadata.metadata("knapsack-rl").get_all("Project-URL") or []
    pages = [page for label, _, page in (entry.partition(", ") for entry in found) if label in ("Issues", "Repository")]
    return f"at {pages[0]}" if pages else "to those you have it from"


def _path(name: object) -> str:
    return name.decode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(name, bytes) else str(name)
