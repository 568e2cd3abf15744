"""Knapsack-allocated rollouts on verl, by configuration alone: `knapsack-rl verl-args` prints the overrides to add.

verl loads the classes below by name. The first access imports them and checks verl's version, so that the command line
works without verl.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

# verl loads them by getattr, except `CheckConfig`, which Hydra loads in the driver.
_HOOKS = ("CheckConfig", "KnapsackAgentLoopManager", "KnapsackReplayBuffer", "KnapsackReplayBufferAsync", "SaveBeliefs")


def __getattr__(name: str) -> Any:
    if name not in _HOOKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_version()
    return getattr(importlib.import_module("knapsack_rl.verl.hooks"), name)


def _check_version() -> None:
    needed = "knapsack_rl.verl needs verl 0.9.x (>= 0.9, < 0.10)"
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{needed}, which is not installed: pip install 'knapsack-rl[verl]'") from None
    if found.split(".")[:2] != ["0", "9"]:
        raise ImportError(f"{needed}, and {found} is installed: its replay buffers and trainers differ")
