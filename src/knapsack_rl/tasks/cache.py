"""The cache of models made or converted on this machine: folders that are created atomically."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE_VARIABLE = "KNAPSACK_RL_CACHE"


def cache_root() -> Path:
    """The cache directory: ``$KNAPSACK_RL_CACHE``, or ``knapsack-rl`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "knapsack-rl"


def cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` of the cache; if it is missing, ``build(folder)`` makes it.

    It is built under a temporary name and renamed when complete. An interrupted build leaves no folder; of several
    concurrent builds, the first to finish is kept.

    Args:
        name: folder name; other content needs another name.
        build: fills an empty folder.

    Returns:
        The complete folder.
    """
    root = cache_root()
    target = root / name
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        build(unfinished)
        _publish(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _publish(unfinished: Path, target: Path) -> None:
    # mkdtemp makes private folders; a cache may be shared by several users.
    unfinished.chmod(0o755)
    try:
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():
            raise
