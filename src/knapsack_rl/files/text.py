"""Text files: complete lines of files that are appended to, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def find_files(paths: Iterable[Path], name: str) -> list[Path]:
    """List the named files, and all files called ``name`` below the named folders, each once and in order.

    Raises:
        ValueError: a folder without such a file.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob(name)) if path.is_dir() else [path]
        if not below:
            raise ValueError(f"there is no {name} in {path} or below")
        found.update(dict.fromkeys(below))
    return list(found)


def plain_json(value: object) -> object:
    """Convert a value to plain JSON types: NaN and infinity become None, objects of other types their text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain_json(item) for item in value]
    return str(value)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def complete_lines(path: Path | str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a file that is appended to, from a byte offset on, each with the offset at its end.

    A last line without a newline is being written, or was cut off by a kill: it is not returned. The only place that
    knows this rule.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield start, line
