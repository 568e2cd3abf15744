"""What strategies remember between steps, in files: JSON, all or nothing, and never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knapsack_rl.files import replacing
from knapsack_rl.table import BeliefFileError

FORMAT = "knapsack-rl strategy"
VERSION = 1


def save_memory(path: Path, kind: str, fields: Mapping[str, object]) -> None:
    """Write what a strategy of this kind remembers, all or nothing; numbers come back bit for bit.

    Raises:
        ValueError: fields that are not plain JSON.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, "kind": kind, **fields}, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode())


def load_memory(path: Path, kind: str) -> dict[str, Any]:
    """The fields that `save_memory` wrote.

    Raises:
        BeliefFileError: the file is missing, damaged, of another version, or of another kind.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BeliefFileError(
            f"{path} is not a readable file of a strategy ({error}): restore it, or delete it to start without"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BeliefFileError(f"{path} is not a file of a strategy of knapsack-rl")
    for name, expected in (("version", VERSION), ("kind", kind)):
        if found.get(name) != expected:
            raise BeliefFileError(
                f"{path} holds {name} {found.get(name)!r}, not {expected!r}: load it into what wrote it"
            )
    return found


def damaged(path: Path, error: Exception) -> BeliefFileError:
    """The error for a file that lacks what it should hold."""
    return BeliefFileError(f"{path} lacks, or has a wrong, {error}: restore it, or delete it to start without")
